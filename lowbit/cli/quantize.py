"""`quantize`: a pretrained model to a width without training."""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax

from lowbit import config as configs
from lowbit import formats
from lowbit.atomic import write_atomically
from lowbit.cli.eval_texts import LONGEST_WINDOW, evaluation_table
from lowbit.cli.origin import source_path
from lowbit.cli.sources import PACKED_SUFFIXES
from lowbit.cli.tables import fields
from lowbit.cli.usage import UsageError, check_output
from lowbit.config import ConfigDict
from lowbit.data import TextTokenizer, open_windows
from lowbit.evals import Evaluation, evaluate, jax_predictor
from lowbit.export import pack_model
from lowbit.locks import sole_writer
from lowbit.models.pretrained import Pretrained
from lowbit.numerics.grids import TERNARY_BITS
from lowbit.ptq import (
    Calibration,
    Method,
    Options,
    Plan,
    QuantizedModel,
    Target,
    assemble,
    draw,
    make_target,
    method_by_name,
    quantize_layers,
    write_run,
)
from lowbit.report.table import format_bytes, format_seconds
from lowbit.strict_json import finite
from lowbit.train.provenance import provenance
from lowbit.train.run_folder import RunFolder
from lowbit.train.sources import load_masters
from lowbit.tree.paths import Tree

RECORD = "quantization.json"
"""Of a folder, the record of how it was made; beside a packed file it is the file's name and `.json`."""

EVALUATION_BATCH = 8


def run(arguments: argparse.Namespace) -> int:
    """Quantizes, writes the result and its record, and prints what it costs and, if asked, what it lost."""
    output = Path(arguments.output).expanduser()
    packs = output.suffix in PACKED_SUFFIXES
    method, target, options = method_by_name(arguments.method), _target(arguments), _options(arguments)
    _check_output(output, packs, target, arguments)
    source = load_masters(arguments.source)
    plan = Plan(method, target, options, _calibration(arguments, method, source))
    plan.check(source.cfg)
    texts = _texts(arguments, source)
    before = _evaluated(source, source.params, texts, arguments.windows) if texts else {}

    began = time.monotonic()
    partial = output.with_name(f".{output.name}.layers")
    partial.mkdir(parents=True, exist_ok=True)
    with sole_writer(partial):
        layers = quantize_layers(
            source.cfg,
            source.params,
            plan,
            finished=partial,
            origin=source_path(arguments.source),
            progress=_progress(source.cfg.num_layers),
        )
        model = assemble(source, layers, target)
        seconds = time.monotonic() - began
        after = _evaluated(source, model.decoded(), texts, arguments.windows) if texts else {}

        record = {
            "source": source_path(arguments.source),
            **plan.record(),
            **provenance(arguments.seed),
            "seconds": seconds,
            "bits_per_weight": model.bits,
            "bits_per_weight_model": model.model_bits,
            "packed": model.packable,
            **_memory(),
            "before": {path: dataclasses.asdict(result) for path, result in before.items()},
            "after": {path: dataclasses.asdict(result) for path, result in after.items()},
            "relative_errors": model.errors,
        }
        _write(output, packs, model, source, record, arguments)
        shutil.rmtree(partial)
    _print(arguments.source, output, model, record, before, after)
    return 0


def _target(arguments: argparse.Namespace) -> Target:
    method = method_by_name(arguments.method)
    bits = configs.parse(arguments.bits, float, "--bits")
    grid = method.grids[0] if arguments.grid is None else arguments.grid
    granularity = configs.parse(arguments.granularity, object, "--granularity")
    width = bits if bits == TERNARY_BITS or not bits.is_integer() else int(bits)
    return make_target(grid, width, granularity, method.ranges[0] if arguments.range is None else arguments.range)


def _options(arguments: argparse.Namespace) -> Options:
    """The options that the method reads; a flag of another method is a mistake."""
    method = method_by_name(arguments.method)
    given = {
        "damping": arguments.damping,
        "act_order": arguments.act_order or None,
        "static_groups": arguments.static_groups or None,
        "alpha": arguments.alpha,
        "threshold": arguments.threshold,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in method.options:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"--method {method.name} has no choice of {flag}", f"leave out {flag}")
    return Options(**chosen, seed=arguments.seed)


def _check_output(output: Path, packs: bool, target: Target, arguments: argparse.Namespace) -> None:
    if packs:
        check_output(output, arguments.overwrite)
        return
    if arguments.overwrite:
        raise UsageError("--overwrite replaces packed files, and a folder is asked for", "give a folder of a new name")
    RunFolder(output).check(resume=False)
    if target.section() is None:
        raise UsageError(
            f"training has no quantizer with the grid {target.grid!r}, so no run folder can hold it",
            f"write a packed file: -o {output}{PACKED_SUFFIXES[0]}",
        )


def _calibration(arguments: argparse.Namespace, method: Method, source: Pretrained) -> Calibration | None:
    if not method.needs_data:
        if arguments.data:
            raise UsageError(f"--method {method.name} looks at no data", "leave out --data")
        return None
    if not arguments.data:
        raise UsageError(f"--method {method.name} needs calibration data", "add --data FILE (text or .npy tokens)")
    windows = open_windows(
        arguments.data, length=arguments.length, vocab_size=source.cfg.vocab_size, tokenizer=_tokenizer(source)
    )
    return draw(windows, arguments.sequences, arguments.seed, ", ".join(arguments.data))


def _tokenizer(source: Pretrained) -> TextTokenizer | None:
    if "tokenizer.json" not in source.tokenizer_files:
        return None
    return TextTokenizer.load(source.tokenizer_files, vocab_size=source.cfg.vocab_size)


def _texts(arguments: argparse.Namespace, source: Pretrained) -> dict[str, Any]:
    length = min(source.cfg.max_positions, LONGEST_WINDOW)
    tokenizer = _tokenizer(source)
    return {
        path: open_windows([path], length=length, vocab_size=source.cfg.vocab_size, tokenizer=tokenizer)
        for path in arguments.eval
    }


def _evaluated(source: Pretrained, params: Tree, texts: dict[str, Any], first: int | None) -> dict[str, Evaluation]:
    """Nats per token on each text; the float32 model or the quantized one."""
    length = min(source.cfg.max_positions, LONGEST_WINDOW)
    predictor = jax_predictor.predictor(source.cfg, params, source.tokenizer_files)
    nll = predictor.make_nll(EVALUATION_BATCH, length, None)
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


def _write(
    output: Path,
    packs: bool,
    model: QuantizedModel,
    source: Pretrained,
    record: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    text = json.dumps(finite(record), indent=2, allow_nan=False).encode()  # an error relative to zeros is NaN
    if not packs:
        write_run(model, output, _config(arguments, record, output), source.tokenizer_files)
        write_atomically(output / RECORD, text)
        return
    # Bytes of the file depend on neither when nor where nor how fast it was made.
    kept = {key: record[key] for key in ("source", "method", "grid", "bits", "granularity", "range", "options")}
    meta = {"quantization": {**kept, "calibration": record["calibration"]}}
    packed = pack_model(model.cfg, model.params, model.rules, model.state, source.tokenizer_files, meta)
    formats.write(output, packed, overwrite=arguments.overwrite)
    write_atomically(output.with_name(f"{output.name}.json"), text)


def _config(arguments: argparse.Namespace, record: dict[str, Any], output: Path) -> ConfigDict:
    config = configs.base()
    section = _target(arguments).section()
    assert section is not None
    with config.unlocked():
        config.quant.update(section)
        config.model.source = record["source"]
        config.run_folder = str(output)
        config.seed = arguments.seed
    return config.lock()


def _print(
    source: str,
    output: Path,
    model: QuantizedModel,
    record: dict[str, Any],
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
) -> None:
    print(f"{source} -> {output}")
    lines = [
        ("quantized matrices", f"{model.bits:.3f} bits/weight"),
        ("whole model", f"{model.model_bits:.3f} bits/weight"),
        ("time", format_seconds(record["seconds"])),
    ]
    if "peak_host_bytes" in record:
        lines.append(("peak memory", format_bytes(record["peak_host_bytes"])))
    if not model.packable:
        lines.append(("result", "holds float16 values: no code of one weight gives them"))
    print(fields(lines))
    if before:
        both = {f"{path}, float": result for path, result in before.items()}
        print(evaluation_table({**both, **{f"{path}, quantized": result for path, result in after.items()}}))
