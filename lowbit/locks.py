"""What one process at a time does. The kernel holds the locks, and lets go of them when their process dies.

A lock is an advisory `flock`. Windows has none, nor have some network file systems: there nobody is kept out, which
`sole_writer` says in a warning.
"""

import contextlib
import datetime
import errno
import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lowbit.errors import LockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
"""The file in a folder that `sole_writer` holds; it names who does, and is gone when nobody does."""

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_UNKNOWN = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    """Lets one process in at a time, and the others wait; the file `place` is made, and stays.

    For work whose result is whole or not there: where there are no locks, it may be done twice.
    """
    with place.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    raise
        yield


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this caller to write to; threads of one process keep each other out as well.

    Raises:
      LockedError: another one holds it (says which process, on which machine and since when), or nothing can be
        written there.
    """
    if fcntl is None:
        _warn(folder, "this system has no fcntl")
        yield
        return
    place = folder / NAME
    with _locked(place) as file:
        holder = {"process": os.getpid(), "host": platform.node(), "since": _now()}
        file.truncate(0)
        file.write(json.dumps(holder) + "\n")
        file.flush()
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def check_free(folder: Path) -> None:
    """Raises LockedError while somebody writes to a folder: for a look before work whose result goes there."""
    with sole_writer(folder):
        pass


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[TextIO]:
    while True:
        try:
            opened = place.open("a+")
        except OSError as error:
            raise LockedError(
                f"{place.parent} cannot be written to ({error.strerror})", "check that it is there and yours to write"
            ) from error
        with opened as file:
            _lock(file, place)
            # Who held it before removed the file, perhaps after it was opened here: then it is nobody's lock.
            if _is_at(file, place):
                yield file
                return


def _lock(file: TextIO, place: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise _refusal(file, place) from error
        if error.errno not in _UNKNOWN:
            raise
        _warn(place.parent, f"its file system knows no locks ({error.strerror})")


def _warn(folder: Path, reason: str) -> None:
    warnings.warn(
        f"{folder} is not locked, as {reason}: a second process that writes there goes unnoticed",
        RuntimeWarning,
        stacklevel=4,
    )


def _refusal(file: TextIO, place: Path) -> LockedError:
    try:
        file.seek(0)
        holder = json.loads(file.read())
        who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not said yet
        who = "another process"
    return LockedError(
        f"{place.parent} is being written by {who}",
        f"wait until it is done, or end it and give the command again; if its machine is gone, remove {place}",
    )


def _is_at(file: TextIO, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
