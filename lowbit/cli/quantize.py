"""`quantize`: a pretrained model to a width without training."""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from lowbit import config as configs
from lowbit import formats
from lowbit.atomic import write_atomically
from lowbit.cli.activation_flags import cache_of
from lowbit.cli.calibration_text import calibration_of, tokenizer_of
from lowbit.cli.eval_texts import LONGEST_WINDOW, evaluation_table
from lowbit.cli.origin import OF_QUANTIZE, source_path
from lowbit.cli.sources import PACKED_SUFFIXES
from lowbit.cli.tables import fields
from lowbit.cli.usage import UsageError, check_output
from lowbit.config import ConfigDict
from lowbit.data import open_windows
from lowbit.errors import QuantizerError
from lowbit.evals import Evaluation, evaluate, jax_predictor
from lowbit.evals.predictor import Predictor
from lowbit.llama import FLOAT_ACTIVATIONS
from lowbit.locks import sole_writer
from lowbit.mixed.record import read_widths
from lowbit.models.layerwise import LayerSource
from lowbit.numerics.grids import TERNARY_BITS
from lowbit.ptq import (
    Activations,
    Calibration,
    Options,
    Plan,
    QuantizedLayer,
    Summary,
    Target,
    assemble,
    make_target,
    method_by_name,
    pack_layers,
    quantize_layers,
    write_run,
)
from lowbit.ptq.memory import available_host_memory, check_host_memory, host_memory
from lowbit.ptq.widths import Widths
from lowbit.report.table import format_bytes, format_seconds
from lowbit.strict_json import finite
from lowbit.train.provenance import provenance
from lowbit.train.run_folder import RunFolder
from lowbit.train.sources import open_masters, source_rounding

RECORD = "quantization.json"
"""Of a folder, the record of how it was made; beside a packed file it is the file's name and `.json`."""

EVALUATION_BATCH = 8

SEQUENCES, LENGTH = 64, 512
"""Of calibration, where no flag says otherwise."""

Written = tuple[Summary, Callable[[], Predictor]]
"""The figures of a result, and what makes it predict."""


def run(arguments: argparse.Namespace) -> int:
    """Quantizes, writes the result and its record, and prints what it costs and, if asked, what it lost."""
    output = Path(arguments.output).expanduser()
    packs = output.suffix in PACKED_SUFFIXES
    method, (target, widths), options = method_by_name(arguments.method), _target(arguments), _options(arguments)
    plan = Plan(method, target, options, None, _activations(arguments), widths)
    _check_output(output, packs, plan, arguments)
    _check_source(arguments)
    source = open_masters(arguments.source)
    plan = dataclasses.replace(plan, calibration=_calibration(arguments, plan, source))
    plan.check(source.cfg)
    texts = _texts(arguments, source)
    _check_memory(source, plan, packs, bool(texts))
    before = _evaluated(_float(source), texts, arguments.windows) if texts else {}

    began = time.monotonic()
    partial = _folder_of_layers(output)
    with sole_writer(partial):
        layers = quantize_layers(
            source,
            plan,
            finished=partial,
            origin=source_path(arguments.source),
            progress=_progress(source.cfg.num_layers),
        )
        seconds = time.monotonic() - began
        record = {"source": source_path(arguments.source), **plan.record(), **provenance(arguments.seed)}
        write = _write_packed if packs else _write_run
        summary, rounded = write(output, source, layers, plan, record, arguments)
        after = _evaluated(rounded(), texts, arguments.windows) if texts else {}
        record |= {
            "seconds": seconds,
            "bits_per_weight": summary.bits,
            "bits_per_weight_model": summary.model_bits,
            "packed": summary.packable,
            **_memory(),
            "before": {path: dataclasses.asdict(result) for path, result in before.items()},
            "after": {path: dataclasses.asdict(result) for path, result in after.items()},
            "relative_errors": summary.errors,
        }
        text = json.dumps(finite(record), indent=2, allow_nan=False).encode()  # an error relative to zeros is NaN
        write_atomically(output.with_name(f"{output.name}.json") if packs else output / RECORD, text, UsageError)
        shutil.rmtree(partial)
    _print(arguments.source, output, summary, record, before, after)
    return 0


def _folder_of_layers(output: Path) -> Path:
    """Makes the folder beside an output where finished layers are kept; raises UsageError where it cannot be made."""
    folder = output.with_name(f".{output.name}.layers")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}, for layers that are finished, cannot be made: {error.strerror}",
            "give an output in a folder that can be written to",
        ) from error
    return folder


def _target(arguments: argparse.Namespace) -> tuple[Target, Widths | None]:
    """What kernels become, and their widths where an allocation says them."""
    method = method_by_name(arguments.method)
    range_ = method.ranges[0] if arguments.range is None else arguments.range
    if (arguments.bits is None) == (arguments.allocation is None):
        raise UsageError("one of --bits and --allocation says to what width", "give the one or the other")
    if arguments.allocation is not None:
        for flag, given in (
            ("--grid", arguments.grid is not None),
            ("--granularity", arguments.granularity is not None),
            ("--double-quant", arguments.double_quant),
        ):
            if given:
                raise UsageError(f"the allocation says what {flag} is", f"leave out {flag}, or allocate with it")
        widths, target = read_widths(Path(arguments.allocation).expanduser())
        return make_target(target.grid, target.bits, target.granularity, range_), widths
    bits = configs.parse(arguments.bits, float, "--bits")
    grid = method.grids[0] if arguments.grid is None else arguments.grid
    granularity = configs.parse(arguments.granularity or "channel", object, "--granularity")
    width = bits if bits == TERNARY_BITS or not bits.is_integer() else int(bits)
    return make_target(grid, width, granularity, range_, arguments.double_quant), None


def _options(arguments: argparse.Namespace) -> Options:
    """The options that the method reads; a flag of another method is a mistake."""
    method = method_by_name(arguments.method)
    given = {
        "damping": arguments.damping,
        "act_order": arguments.act_order or None,
        "static_groups": arguments.static_groups or None,
        "token_weights": arguments.token_weights,
        "alpha": arguments.alpha,
        "threshold": arguments.threshold,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "weight_rate": arguments.weight_rate,
        "scale_rate": arguments.scale_rate,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in method.options:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"--method {method.name} has no choice of {flag}", f"leave out {flag}")
    return Options(**chosen, seed=arguments.seed)


def _activations(arguments: argparse.Namespace) -> Activations | None:
    name, estimate = arguments.activations, arguments.activation_range
    if name is None and estimate is not None:
        raise UsageError("--activation-range says how static ranges are found", "add --activations int8-static")
    if name is None and arguments.kv_bits is None:
        return None
    found = Activations(name or "float", estimate or "max", cache_of(arguments.kv_bits))
    if estimate is not None and not found.is_static:
        raise UsageError(f"--activations {name} has no choice of --activation-range", "leave out --activation-range")
    return found


def _check_source(arguments: argparse.Namespace) -> None:
    """Refuses to lose silently how the activations of a source are rounded: its masters alone go on from here."""
    source, rounding = arguments.source, source_rounding(arguments.source)
    lost = [
        f"{flag} (such as {flag} {example})"
        for flag, example, given, had in (
            ("--activations", "float", arguments.activations, rounding.inputs),
            ("--kv-bits", "16", arguments.kv_bits, rounding.cache),
        )
        if had and given is None
    ]
    if lost:
        raise UsageError(
            f"{source} was made for {rounding.described()}, and quantize goes on from its weights alone",
            f"say what takes the place of that: {' and '.join(lost)}",
        )
    if rounding and arguments.eval:
        raise UsageError(
            f"--eval compares with {source} in floats, and it was made for {rounding.described()}: no such model was",
            "leave out --eval, and run `eval` on the source and on the result",
        )


def _check_output(output: Path, packs: bool, plan: Plan, arguments: argparse.Namespace) -> None:
    if packs:
        check_output(output, arguments.overwrite)
        return
    if arguments.overwrite:
        raise UsageError("--overwrite replaces packed files, and a folder is asked for", "give a folder of a new name")
    RunFolder(output).check(resume=False)
    try:
        plan.section()
    except QuantizerError as error:
        raise UsageError(
            f"{error.cause}, so no run folder can hold it", f"write a packed file: -o {output}{PACKED_SUFFIXES[0]}"
        ) from error


def _calibration(arguments: argparse.Namespace, plan: Plan, source: LayerSource) -> Calibration | None:
    who = f"--method {plan.method.name}"
    if not plan.needs_data:
        for flag in ("data", "sequences", "length"):
            if getattr(arguments, flag):
                raise UsageError(f"{who} looks at no data", f"leave out --{flag}")
        return None
    if not arguments.data:
        who = who if plan.method.needs_data else f"--activations {arguments.activations}"
        raise UsageError(f"{who} needs calibration data", "add --data FILE (text or .npy tokens)")
    return calibration_of(
        source,
        arguments.data,
        sequences=arguments.sequences or SEQUENCES,
        length=arguments.length or LENGTH,
        seed=arguments.seed,
    )


def _texts(arguments: argparse.Namespace, source: LayerSource) -> dict[str, Any]:
    if arguments.windows is not None and not arguments.eval:
        raise UsageError("--windows is for --eval", "leave it out, or add --eval FILE")
    length = min(source.cfg.max_positions, LONGEST_WINDOW)
    tokenizer = tokenizer_of(source)
    return {
        path: open_windows([path], length=length, vocab_size=source.cfg.vocab_size, tokenizer=tokenizer)
        for path in arguments.eval
    }


def _float(source: LayerSource) -> Predictor:
    return jax_predictor.predictor(source.cfg, source.load().params, source.tokenizer_files)


def _evaluated(predictor: Predictor, texts: dict[str, Any], first: int | None) -> dict[str, Evaluation]:
    """Nats per token on each text."""
    nll = predictor.make_nll(EVALUATION_BATCH, min(predictor.cfg.max_positions, LONGEST_WINDOW), None)
    return {path: evaluate(nll, windows, batch_size=EVALUATION_BATCH, first=first) for path, windows in texts.items()}


def _progress(layers: int) -> Any:
    def show(index: int, seconds: float) -> None:
        print(f"layer {index + 1} of {layers}: {format_seconds(seconds)}", file=sys.stderr)

    return show


def _memory() -> dict[str, int]:
    """The most memory that the process and its first device have held so far, in bytes; only what can be known."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    peak = {"peak_device_bytes": statistics["peak_bytes_in_use"]} if statistics else {}
    try:
        import resource
    except ImportError:  # not every system counts it
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return {"peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, **peak}


def _check_memory(source: LayerSource, plan: Plan, packs: bool, evaluates: bool) -> None:
    """Says what memory the work takes, and refuses it where the host has less."""
    on_host = jax.default_backend() == "cpu"
    windows = (EVALUATION_BATCH, min(source.cfg.max_positions, LONGEST_WINDOW)) if evaluates else (0, 0)
    needed = host_memory(source.cfg, plan, packs=packs, windows=windows, on_host=on_host)
    available = available_host_memory()
    check_host_memory(needed, available)
    free = "" if available is None else f"; {format_bytes(available)} are free"
    print(f"{needed}{free}", file=sys.stderr)


def _write_packed(
    output: Path,
    source: LayerSource,
    layers: Iterable[QuantizedLayer],
    plan: Plan,
    record: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> Written:
    # Bytes of the file depend on neither when nor where nor how fast it was made.
    kept = ("source", *plan.record())
    meta = {OF_QUANTIZE: {key: record[key] for key in kept}}
    packed, summary = pack_layers(source, layers, plan.target, meta, plan.activations)
    formats.write(output, packed, overwrite=arguments.overwrite)
    return summary, lambda: jax_predictor.packed_predictor(source.cfg, packed)


def _write_run(
    output: Path,
    source: LayerSource,
    layers: Iterable[QuantizedLayer],
    plan: Plan,
    record: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> Written:
    model = assemble(source, layers, plan.target)
    config, files = _config(plan, record, output, arguments.seed), source.tokenizer_files
    write_run(model, output, config, files)
    rounding = FLOAT_ACTIVATIONS if plan.activations is None else plan.activations.rounding()
    return model.summary, lambda: jax_predictor.predictor(model.cfg, model.decoded(), files, rounding, model.ranges)


def _config(plan: Plan, record: Mapping[str, Any], output: Path, seed: int) -> ConfigDict:
    config = configs.base()
    with config.unlocked():
        config.quant.update(plan.section())
        if plan.activations is not None:
            config.activations.update(plan.activations.section())
        config.model.source = record["source"]
        config.run_folder = str(output)
        config.seed = seed
    return config.lock()


def _print(
    source: str,
    output: Path,
    summary: Summary,
    record: dict[str, Any],
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
) -> None:
    print(f"{source} -> {output}")
    lines = [
        ("quantized matrices", f"{summary.bits:.3f} bits/weight"),
        ("whole model", f"{summary.model_bits:.3f} bits/weight"),
        ("time", format_seconds(record["seconds"])),
    ]
    if "peak_host_bytes" in record:
        lines.append(("peak memory", format_bytes(record["peak_host_bytes"])))
    if not summary.packable:
        lines.append(("result", "holds float16 values: no code of one weight gives them"))
    print(fields(lines))
    if before:
        both = {f"{path}, float": result for path, result in before.items()}
        print(evaluation_table({**both, **{f"{path}, quantized": result for path, result in after.items()}}))
