"""Disks that are full, or too full for what comes next, said in a user's words."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lowbit.errors import DiskFullError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# What libraries that do not raise OSError make of the two.
_WORDS = ("No space left on device", "Disk quota exceeded")
_MEND = "free space there, or give more, and resume the run"


def check_room(folder: Path, size: int, what: str) -> None:
    """Raises DiskFullError unless `size` bytes are free where `folder` lies; `what` needs them."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DiskFullError(f"{what} takes {size:,} bytes, and the disk of {folder} has {free:,} left", _MEND)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Raises DiskFullError, naming `folder` and the bytes left, for whatever a full disk below it made fail."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        raise DiskFullError(f"the disk of {folder} is full ({free:,} bytes are free)", _MEND) from error
