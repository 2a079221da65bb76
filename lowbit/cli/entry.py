"""`main`: one command from its arguments to its exit status.

Statuses: 0 done; 1 the answer is no (`verify`, `estimate`); 2 a mistake that the message explains; 130, 141 and 143
stopped by Ctrl-C, a closed pipe and SIGTERM.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lowbit.atomic import explained
from lowbit.cli.commands import overview
from lowbit.cli.parsing import parse
from lowbit.errors import DiskFullError, LowbitError, MemoryShortError
from lowbit.version import __version__

MISTAKE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: its name and arguments; None takes those of the process.

    Returns:
      The exit status. A mistake of the user's is printed with its mend, and so are memory and disks that
      ran out; any other exception is a bug and passes.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            status = _run(arguments)
        except LowbitError as error:
            print(f"lowbit: error: {error}", file=sys.stderr)
            status = MISTAKE
        except KeyboardInterrupt:
            print("lowbit: interrupted", file=sys.stderr)
            status = INTERRUPTED
        except Exception as error:
            known = _out_of_memory(error) or _unwritable(error)
            if known is None:
                raise
            print(f"lowbit: error: {known}", file=sys.stderr)
            status = MISTAKE
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return status
    except BrokenPipeError:
        # The reader has what it wanted. What is left in the buffer goes nowhere, or the interpreter would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _out_of_memory(error: Exception) -> MemoryShortError | None:
    """What to say where the host or a device has no memory left; which jax says by a RuntimeError."""
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and "Out of memory" in str(error)):
        return None
    cause = str(error).partition("\n")[0] or "there is no memory left"
    return MemoryShortError(
        cause, "make batches or windows smaller (`estimate` says what a run takes), or take a larger machine"
    )


def _unwritable(error: Exception) -> DiskFullError | None:
    """What to say where a disk is full, or may not be written to."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return DiskFullError(*explained(Path(error.filename or "a file"), error))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(), end="")
        return 0
    if arguments[0] == "--version":
        print(f"lowbit {__version__}")
        return 0
    try:
        command, values = parse(arguments)
    except SystemExit:  # argparse has printed the help
        return 0
    return _execute(command.name, values)


def _execute(name: str, values: argparse.Namespace) -> int:
    # Imported here: jax alone takes a second, and half of the commands do without it.
    match name:
        case "tokenize":
            from lowbit.cli import tokenize

            return tokenize.run(values)
        case "synthesize":
            from lowbit.cli import synthesize

            return synthesize.run(values)
        case "estimate":
            from lowbit.cli import estimate

            return estimate.run(values)
        case "cache-teacher":
            from lowbit.cli import cache_teacher

            return cache_teacher.run(values)
        case "allocate":
            from lowbit.cli import allocate

            return allocate.run(values)
        case "train":
            from lowbit.cli import train

            return train.run(values)
        case "sweep":
            from lowbit.cli import sweep

            return sweep.run(values)
        case "quantize":
            from lowbit.cli import quantize

            return quantize.run(values)
        case "eval":
            from lowbit.cli import evaluate

            return evaluate.run(values)
        case "report":
            from lowbit.cli import report

            return report.run(values)
        case "export":
            from lowbit.cli import export

            return export.run(values)
        case "verify":
            from lowbit.cli import verify

            return verify.run(values)
        case "inspect":
            from lowbit.cli import inspect

            return inspect.run(values)
        case "generate":
            from lowbit.cli import generate

            return generate.run(values)
        case "bench":
            from lowbit.cli import bench

            return bench.run(values)
    raise AssertionError(f"command {name!r} has no implementation")
