"""Files that are there whole or not at all, also after a power cut."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowbit.errors import LowbitError

SUFFIX = ".partial"
"""Of a file that is being written; one that a killed process left may be removed."""


@contextlib.contextmanager
def replacing(path: Path, refusal: type[LowbitError] | None = None) -> Iterator[BinaryIO]:
    """Gives a file to write that takes the place of `path` at the end, or vanishes if the writing failed.

    Args:
      path: the file, which may exist; its folder must.
      refusal: what it is raised as if the file system refuses, with what can be done about it.

    Raises:
      OSError: the file system refuses, and `refusal` is None: for a caller who says more.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        if refusal is None:
            raise
        raise refusal(*explained(path, error)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, refusal: type[LowbitError] | None = None) -> None:
    """Writes a whole file; arguments and errors as `replacing`."""
    with replacing(path, refusal) as file:
        file.write(content)


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut; only POSIX lets a folder be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(path: Path, error: OSError) -> tuple[str, str]:
    """Returns cause and mend where the file system refuses to write `path`."""
    space, owner = "free some space, or write to another disk", f"write to a folder of your own, not to {path.parent}"
    mends = {
        errno.ENOSPC: space,
        errno.EDQUOT: space,
        errno.EACCES: owner,
        errno.EPERM: owner,
        errno.EROFS: owner,
        errno.ENOENT: f"make the folder {path.parent} first",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"{path} cannot be written: {reason}", mends.get(
        error.errno or 0, "check the path and the disk, then try again"
    )
