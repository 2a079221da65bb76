"""Mistakes on the command line itself, and the one check that every command with an output makes first."""

import os
from pathlib import Path

from lowbit.errors import LowbitError


class UsageError(LowbitError):
    """Arguments that are missing, unknown, or do not go together."""


def check_output(path: Path, overwrite: bool) -> None:
    """Refuses an output that could not be written in the end, before any work.

    Raises:
      UsageError: the path is a folder, its folder is missing or not writable, or the file exists and may not be
        overwritten.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "give the path of a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "make it first, or write somewhere else")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} may not be written to", "write to a folder of your own")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "give another name, or replace it with --overwrite")


def check_new_folder(path: Path) -> None:
    """Refuses a folder to be made that is there already with something in it, or has no place to be.

    Raises:
      UsageError: what is in the way.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not an empty folder", "remove it, or give another name")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", "make it first, or write somewhere else")
