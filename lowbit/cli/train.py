"""`train`: a config from beginning to end."""

import argparse
import json
from pathlib import Path
from shlex import quote

from lowbit import config as configs
from lowbit.cli.commands import PROGRAM
from lowbit.cli.eval_texts import evaluation_table
from lowbit.cli.parsing import UsageError
from lowbit.cli.tables import fields
from lowbit.mixed.record import read_widths
from lowbit.report.table import format_seconds
from lowbit.train import Result, processes
from lowbit.train import run as run_config
from lowbit.train.distributed import connect
from lowbit.train.run_folder import RunFolder

STOPPED = 143  # what a process that SIGTERM ended reports


def run(arguments: argparse.Namespace) -> int:
    """Trains, and prints what it came to and where it lies."""
    config = configs.load(arguments.config, arguments.overrides)
    if arguments.allocation is not None:
        widths, target = read_widths(Path(arguments.allocation).expanduser())
        config.quant.overrides = (*widths.overrides(target), *config.quant.overrides)
    _connect(arguments)
    result = run_config(config, resume=arguments.resume)
    if not processes.is_first():
        return 0 if result.finished else STOPPED
    if not result.finished:
        print(f"stopped at step {result.step} with a checkpoint; the same command with --resume goes on")
        return STOPPED
    if result.evaluations:
        print(evaluation_table(result.evaluations))
        print()
    print(fields(_facts(result)))
    return 0


def _connect(arguments: argparse.Namespace) -> None:
    explicit = (arguments.coordinator, arguments.processes, arguments.process_index)
    if all(value is not None for value in explicit):
        connect(*explicit)
    elif any(value is not None for value in explicit):
        raise UsageError(
            "--coordinator, --processes and --process-index say together which process this is, and one is missing",
            "give all three, or --distributed alone where a cluster knows them",
        )
    elif arguments.distributed:
        connect()


def _facts(result: Result) -> list[tuple[str, str]]:
    folder = RunFolder(result.run_folder)
    record = json.loads(folder.result.read_text())
    quantized = record["bits_per_weight"]
    speed = "" if result.tokens_per_s is None else f", {result.tokens_per_s:,.0f} tokens/s"
    return [
        ("trained", f"{result.step:,} steps, {result.tokens:,} tokens, {format_seconds(result.seconds)}{speed}"),
        ("quantized matrices", "none" if quantized is None else f"{quantized:.3f} bits/weight"),
        ("whole model", f"{record['bits_per_weight_model']:.3f} bits/weight"),
        ("result", str(folder.result)),
        ("metrics", str(folder.metrics)),
        ("checkpoints", str(folder.checkpoints)),
        ("next", f"{PROGRAM} export {quote(str(folder.path))} -o {quote(str(folder.path / 'model.lowbit'))}"),
    ]
