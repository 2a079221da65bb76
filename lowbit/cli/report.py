"""`report`: a page about one training run."""

import argparse
from pathlib import Path

from lowbit.cli.usage import check_output
from lowbit.report.run_page import write_run_page


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and says where it lies."""
    output = None if arguments.output is None else Path(arguments.output).expanduser()
    if output is not None:
        check_output(output, arguments.overwrite)
    print(f"open {write_run_page(Path(arguments.run).expanduser(), output).resolve()}")
    return 0
