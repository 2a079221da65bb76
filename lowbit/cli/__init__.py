"""The command line: train, eval, export, verify, inspect, generate.

Importing it loads the standard library alone; each command imports what it needs when it runs.
"""

from lowbit.cli.entry import main

__all__ = ["main"]
