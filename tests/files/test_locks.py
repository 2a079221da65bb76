"""Folders with one writer: who is kept out, what is said, and what a killed writer leaves."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from lowbit import locks
from lowbit.errors import LockedError
from lowbit.locks import NAME, check_free, one_at_a_time, sole_writer

HOLDER = """
import sys, time
from pathlib import Path
from lowbit.locks import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with sole_writer(tmp_path):
        holder = json.loads((tmp_path / NAME).read_text())
        assert (holder["process"], holder["host"]) == (os.getpid(), platform.node())
        message = (
            rf"is being written by process {os.getpid()} on {platform.node()} since 20\d\d-.*"
            rf"\n  -> wait until it is done, .*; if its machine is gone, remove .*/{NAME}"
        )
        with pytest.raises(LockedError, match=message), sole_writer(tmp_path):
            pass
        with pytest.raises(LockedError, match=message):
            check_free(tmp_path)
        (tmp_path / NAME).write_text("")  # locked, and not yet said by whom
        with pytest.raises(LockedError, match="is being written by another process"):
            check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    check_free(tmp_path)


def test_a_writer_that_fails_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path):
        1 // 0  # noqa: B018
    check_free(tmp_path)


def test_a_killed_writer_has_let_go(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"by process {process.pid} on "):
        check_free(tmp_path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert (tmp_path / NAME).is_file()  # nobody was left to remove it
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    lock, times = locks.fcntl.flock, []

    def flock(file, operation):
        lock(file, operation)
        times.append(operation)
        if len(times) == 1:
            (tmp_path / NAME).unlink()  # as the holder before does, between our opening and locking it

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with sole_writer(tmp_path):
        assert len(times) == 2
        with pytest.raises(LockedError):
            check_free(tmp_path)


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    with pytest.warns(RuntimeWarning, match="is not locked, as its file system knows no locks .* goes unnoticed"):
        check_free(tmp_path)
    monkeypatch.setattr(locks, "fcntl", None)  # as on Windows
    with pytest.warns(RuntimeWarning, match="is not locked, as this system has no fcntl"):
        check_free(tmp_path)
    with one_at_a_time(tmp_path / "compiling"):
        pass


def test_another_error_of_the_file_system_is_no_lock(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks.fcntl, "flock", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        check_free(tmp_path)


def test_one_at_a_time_lets_the_second_in_after_the_first(tmp_path):
    order = []
    entered = threading.Event()

    def second():
        entered.set()
        with one_at_a_time(tmp_path / "lock"):
            order.append("second")

    with one_at_a_time(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(10)
        thread.join(0.2)  # it has no business to end
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_work_is_done_where_there_are_no_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with one_at_a_time(tmp_path / "lock"):
        done = True
    assert done


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(LockedError, match=r"absent cannot be written to \(No such file.*\n  -> check that it is there"):
        check_free(tmp_path / "absent")
