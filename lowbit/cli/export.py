"""`export`: a trained or rounded model to a packed file, a GGUF file or a Hugging Face folder."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from lowbit import formats
from lowbit.cli import quantized
from lowbit.cli.gguf_summary import summary
from lowbit.cli.origin import without_adapters
from lowbit.cli.packed_file import bits_fields, open_model
from lowbit.cli.sources import asks_for_rounding, kind_of, refuse_rounding
from lowbit.cli.tables import fields
from lowbit.cli.usage import UsageError, check_new_folder, check_output
from lowbit.export import pack_model
from lowbit.export.gguf import to_gguf, write_gguf, write_tensors
from lowbit.export.gguf_adapter import to_gguf_adapter
from lowbit.export.gguf_record import from_gguf, is_recorded
from lowbit.export.hf import PACKED_FILE, to_hf
from lowbit.formats import PackedModel
from lowbit.llama.activations import to_meta
from lowbit.report.table import format_bytes

ADAPTER_SUFFIX = ".lora.gguf"
"""Of the file beside a GGUF file that holds its adapters, in place of .gguf."""


def run(arguments: argparse.Namespace) -> int:
    """Packs, writes, and prints what the file costs."""
    writers: dict[str, Callable[[PackedModel, Path, argparse.Namespace], str]] = {
        "packed": _to_packed,
        "gguf": _to_gguf,
        "hf": _to_hf,
    }
    output = Path(arguments.output).expanduser()
    _check(arguments, output)
    packed, name = _model(arguments)
    told = writers[arguments.to](packed, output, arguments)
    print(f"{name} -> {output}")
    print(told)
    return 0


def _check(arguments: argparse.Namespace, output: Path) -> None:
    """Refuses what could not be done in the end, before any work."""
    if arguments.to != "gguf":
        for flag, given in (("--avoid", bool(arguments.avoid)), ("--pre", arguments.pre is not None)):
            if given:
                raise UsageError(f"--to {arguments.to} has no choice of {flag}", f"leave out {flag}, or add --to gguf")
    if arguments.to == "hf":
        check_new_folder(output)
    else:
        check_output(output, arguments.overwrite)
    if arguments.to == "gguf" and output.suffix != ".gguf":
        raise UsageError(f"{output} does not end with .gguf, by which such files are known", "name it so")


def _model(arguments: argparse.Namespace) -> tuple[PackedModel, str]:
    """Returns the model that SOURCE and the flags of rounding describe, packed, and what to call it."""
    source = arguments.source
    path = Path(source).expanduser()
    if kind_of(source) == "packed" and arguments.to != "packed":
        refuse_rounding(arguments)
        return open_model(source)[0], source
    if path.suffix == ".gguf" and not asks_for_rounding(arguments) and is_recorded(path):
        return from_gguf(path), source
    model = quantized.from_arguments(arguments)
    model.rounding.check_causal()
    meta = {**model.origin.to_meta(), **to_meta(model.rounding, model.ranges)}
    packed = pack_model(model.cfg, model.params, model.rules, model.state, model.tokenizer_files, meta)
    return packed, model.origin.path


def _to_packed(packed: PackedModel, output: Path, arguments: argparse.Namespace) -> str:
    formats.write(output, packed, overwrite=arguments.overwrite)
    formats.verify_checksums(output)
    return fields(bits_fields(formats.summarize(packed, output.stat().st_size)))


def _to_gguf(packed: PackedModel, output: Path, arguments: argparse.Namespace) -> str:
    adapter = to_gguf_adapter(packed, output.stem) if packed.adapters() else None
    beside = output.with_suffix(ADAPTER_SUFFIX)
    if adapter is not None:
        check_output(beside, arguments.overwrite)
    base = packed if adapter is None else _base(packed)
    model = to_gguf(base, output.stem, arguments.avoid, arguments.pre)
    write_gguf(output, model)
    told = summary(model, output.stat().st_size)
    if adapter is None:
        return told
    write_tensors(beside, adapter.metadata, adapter.tensors)
    return f"{told}\n{fields([('adapters', f'{beside}, {format_bytes(beside.stat().st_size)}, for --lora')])}"


def _base(packed: PackedModel) -> PackedModel:
    """The model beside which adapters were trained, which says so when it is packed again."""
    return dataclasses.replace(packed.without_adapters(), meta=without_adapters(packed.meta))


def _to_hf(packed: PackedModel, output: Path, arguments: argparse.Namespace) -> str:
    dtype = to_hf(packed, output)
    formats.verify_checksums(output / PACKED_FILE)
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    inside = (output / PACKED_FILE).stat().st_size
    return fields(
        [
            ("weights", f"{dtype}, {format_bytes(size)}, equal to the packed ones bit for bit"),
            (PACKED_FILE, f"{format_bytes(inside)}, codes, scales and factors"),
        ]
    )
