"""Files that appear whole or not at all."""

import errno
import os

import pytest

from lowbit.atomic import SUFFIX, replacing, write_atomically
from lowbit.errors import DataError


def test_the_old_content_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        (partial,) = set(tmp_path.iterdir()) - {path}
        assert partial.name.startswith(".file.")
        assert partial.suffix == SUFFIX
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_whatever_stops_the_writer_leaves_the_old_content_alone(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:  # noqa: PT012
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free some space, or write to another disk"),
        (errno.EACCES, "write to a folder of your own, not to "),
        (errno.EIO, "check the path and the disk"),
    ],
)
def test_a_refusal_is_explained_and_leaves_nothing_behind(tmp_path, monkeypatch, step, number, mend):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"lowbit.atomic.os.{step}", refuses)
    with pytest.raises(DataError, match=rf"file cannot be written: {os.strerror(number)}\n  -> {mend}"):
        write_atomically(tmp_path / "file", b"content", DataError)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"No such file or directory\n  -> make the folder .*nowhere first"):
        write_atomically(tmp_path / "nowhere" / "file", b"", DataError)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one, replacing(path) as two:
        one.write(b"one")
        two.write(b"two")
    assert path.read_bytes() == b"one"  # the outer one ends last
    assert list(tmp_path.iterdir()) == [path]
