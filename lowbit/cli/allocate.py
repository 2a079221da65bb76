"""`allocate`: the width of each matrix, under a budget of bytes."""

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit import config as configs
from lowbit.atomic import write_atomically
from lowbit.cli.calibration_text import calibration_of
from lowbit.cli.origin import source_path
from lowbit.cli.tables import fields, table
from lowbit.cli.usage import UsageError, check_output
from lowbit.llama import LlamaConfig
from lowbit.locks import sole_writer
from lowbit.mixed import (
    SEQUENCES,
    Allocation,
    FinishedRows,
    Sensitivities,
    Trial,
    allocate,
    allowed_bytes,
    measure_by_name,
    read_losses,
    to_record,
    uniform,
)
from lowbit.mixed.allocation import kernel_bytes
from lowbit.models.layerwise import LayerSource, outside_paths
from lowbit.ptq import Options, Plan, make_target, method_by_name
from lowbit.report.kernel_figures import save
from lowbit.report.table import format_bytes, format_seconds
from lowbit.report.width_figure import draw_widths
from lowbit.train.provenance import provenance
from lowbit.train.sources import open_masters
from lowbit.train.teacher import fingerprint
from lowbit.version import __version__


def run(arguments: argparse.Namespace) -> int:
    """Measures, chooses, prints and writes."""
    output = Path(arguments.output).expanduser()
    picture = output.with_suffix(".png")
    for path in (output, picture):
        check_output(path, arguments.overwrite)
    if output.suffix != ".json":
        raise UsageError(f"{output} is to hold JSON", "give a name that ends in .json")
    measure_by_name(arguments.by)
    plan, widths = _plan(arguments)
    source = open_masters(arguments.source)
    trial = Trial(_calibrated(plan, arguments, source), widths)
    trial.check(source.cfg)
    allowed_bytes(source.cfg, plan.target, widths, arguments.budget)

    began = time.monotonic()
    origin = {"source": source_path(arguments.source), "source_fingerprint": _fingerprint(source)}
    found = _losses(arguments, output, source, trial, {**origin, **trial.record(), "by": arguments.by})
    allocation = allocate(source.cfg, plan.target, found, arguments.budget)
    made = {**origin, **provenance(arguments.seed), "seconds": time.monotonic() - began}
    record = to_record(source.cfg, allocation, trial, found, arguments.budget, made)
    save(draw_widths(record), picture)
    write_atomically(output, json.dumps(record, indent=1, allow_nan=False).encode(), UsageError)
    shutil.rmtree(_partial(output), ignore_errors=True)
    _print(source.cfg, allocation, found)
    print(f"\nwritten to {output} and {picture} in {format_seconds(record['seconds'])}")
    return 0


def _losses(
    arguments: argparse.Namespace, output: Path, source: LayerSource, trial: Trial, settings: Mapping[str, Any]
) -> Sensitivities:
    """What each kernel loses: read, where a file has it, or measured."""
    if arguments.losses is not None:
        return read_losses(Path(arguments.losses).expanduser(), settings)
    partial = _partial(output)
    partial.mkdir(exist_ok=True)
    with sole_writer(partial):
        finished = FinishedRows(partial / "losses.json", {**settings, "version": __version__})
        return measure_by_name(arguments.by)(source, trial, finished, _show_progress)


def _partial(output: Path) -> Path:
    """The folder of what is measured so far."""
    return output.with_name(f".{output.name}.layers")


def _plan(arguments: argparse.Namespace) -> tuple[Plan, tuple[float, ...]]:
    """What kernels become when they are tried, without the data, and the widths in ascending order."""
    method = method_by_name(arguments.method)
    widths = tuple(sorted(configs.parse(text, float, "--widths") for text in arguments.widths))
    if not (math.isfinite(arguments.budget) and arguments.budget > 0):
        raise UsageError(f"--budget {arguments.budget:g} is no number of bits", "give bits/weight, such as 3.0")
    granularity = configs.parse(arguments.granularity, object, "--granularity")
    range_ = method.ranges[0] if arguments.range is None else arguments.range
    target = make_target(arguments.grid, widths[-1], granularity, range_)
    for bits in widths:
        target.at(bits)
    return Plan(method, target, Options(seed=arguments.seed), None), widths


def _calibrated(plan: Plan, arguments: argparse.Namespace, source: LayerSource) -> Plan:
    sequences = SEQUENCES[arguments.by] if arguments.sequences is None else arguments.sequences
    calibration = calibration_of(
        source, arguments.data, sequences=sequences, length=arguments.length, seed=arguments.seed
    )
    return dataclasses.replace(plan, calibration=calibration)


def _fingerprint(source: LayerSource) -> str:
    """A hash of all weights, one layer in memory at a time."""
    digest = hashlib.blake2b(digest_size=16)
    for path in outside_paths(source.cfg):
        digest.update(fingerprint({path: source.outside(path)}).encode())
    for index in range(source.cfg.num_layers):
        digest.update(fingerprint(source.layer(index)).encode())
    return digest.hexdigest()


def _show_progress(done: int, of: int) -> None:
    if done == of or done % max(1, of // 8) == 0:
        print(f"measured {done} of {of}", file=sys.stderr)


def _print(cfg: LlamaConfig, allocation: Allocation, found: Sensitivities) -> None:
    """A line a kind of matrix, then what one width for all would come to."""
    rows = []
    for path, widths in allocation.widths.by_path.items():
        sizes = [kernel_bytes(cfg, allocation.target.at(bits), path) for bits in widths]
        losses = [found.losses[path][layer, found.widths.index(bits)] for layer, bits in enumerate(widths)]
        rows.append(
            [
                *(path.removesuffix("/kernel"), " ".join(f"{bits:g}" for bits in widths)),
                *(f"{100 * sum(sizes) / allocation.nbytes:.1f} %", f"{sum(losses):.4f}"),
            ]
        )
    print(table(["matrix", "bits, layer by layer", "of all bytes", "loss"], rows, left=2))
    print()
    lines = [("allocated", _facts(allocation))]
    lines += [(f"{bits:g} bits all", _facts(one)) for bits, one in uniform(cfg, allocation.target, found).items()]
    print(fields(lines))


def _facts(allocation: Allocation) -> str:
    return f"{allocation.bits:.3f} bits/weight, {format_bytes(allocation.nbytes)}, loss {allocation.loss:.4f}"
