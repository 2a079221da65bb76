"""`sweep`: many points of one config from beginning to end, then their table and figures."""

import argparse
import dataclasses
import shlex
from pathlib import Path

from lowbit.cli.commands import PROGRAM
from lowbit.report.sweep import read_sweep, sweep_table
from lowbit.report.sweep_page import write_sweep_report
from lowbit.sweep import load_sweep, run_sweep

STOPPED = 143  # what a process that SIGTERM ended reports


def run(arguments: argparse.Namespace) -> int:
    """Trains what is left of a sweep, and prints its table and where the report lies."""
    sweep = load_sweep(arguments.sweep)
    if arguments.points_at_once is not None:
        sweep = dataclasses.replace(sweep, points_at_once=arguments.points_at_once)
    folder = Path(arguments.output or f"runs/sweep_{Path(arguments.sweep).stem}")
    finished = run_sweep(
        sweep,
        folder,
        overrides=arguments.overrides,
        resume=arguments.resume,
        dry_run=arguments.dry_run,
        command=_command(arguments, folder),
    )
    if arguments.dry_run:
        return 0
    if not finished:
        return STOPPED
    report = write_sweep_report(folder)
    print()
    print(sweep_table(read_sweep(folder / "sweep.json"), "plain"))
    print(f"\nOpen the report: {report.resolve()}")
    return 0


def _command(arguments: argparse.Namespace, folder: Path) -> str:
    """The command line that makes the sweep, whichever it was that finished it."""
    at_once = [] if arguments.points_at_once is None else ["--points-at-once", str(arguments.points_at_once)]
    overrides = [f"--config.{assignment}" for assignment in arguments.overrides]
    return shlex.join([*PROGRAM.split(), "sweep", arguments.sweep, "-o", str(folder), *at_once, *overrides])
