"""Writing and reading a packed file: equal bytes, views on the map, all or nothing."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from lowbit.errors import FormatError
from lowbit.formats import BFloat16, PackedModel, PackedTensor, decode, read, verify_checksums, write
from lowbit.formats.layout import stored_arrays

GOLDEN_SHA256 = "8330bef7a60f6b101ab39115bb761c6174b109b6a74f709cfec58c1b7e1fa61e"


def raw_arrays(model: PackedModel) -> dict[str, np.ndarray]:
    return {name: array.bits if isinstance(array, BFloat16) else array for name, array in stored_arrays(model).items()}


@pytest.mark.parametrize("verify", [False, True])
def test_reading_gives_back_what_was_written(tiny_file: Path, tiny_model: PackedModel, verify: bool) -> None:
    got = read(tiny_file, verify=verify)
    assert got.config == tiny_model.config
    assert got.meta == tiny_model.meta
    assert got.tokenizer == tiny_model.tokenizer
    assert got.tensors.keys() == tiny_model.tensors.keys()
    written, arrays = raw_arrays(tiny_model), raw_arrays(got)
    for name, array in arrays.items():
        assert array.dtype == written[name].dtype
        np.testing.assert_array_equal(array, written[name])
    for name, tensor in got.tensors.items():
        expected = tiny_model.tensors[name]
        np.testing.assert_array_equal(decode(tensor).view(np.uint32), decode(expected).view(np.uint32))
        if isinstance(tensor, PackedTensor):
            assert isinstance(expected, PackedTensor)
            assert (tensor.grid, tensor.packing, tensor.shape, tensor.transposed) == (
                expected.grid,
                expected.packing,
                expected.shape,
                expected.transposed,
            )


def test_the_bytes_are_golden(tiny_file: Path) -> None:
    """A change of this hash is a change of the format: raise the version and say so in docs/format.md."""
    assert hashlib.sha256(tiny_file.read_bytes()).hexdigest() == GOLDEN_SHA256


def test_the_order_of_tensors_does_not_change_the_bytes(
    tmp_path: Path, tiny_file: Path, tiny_model: PackedModel
) -> None:
    shuffled = replace(tiny_model, tensors=dict(reversed(tiny_model.tensors.items())))
    write(tmp_path / "shuffled", shuffled)
    assert (tmp_path / "shuffled").read_bytes() == tiny_file.read_bytes()


def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path, tiny_file: Path) -> None:
    write(tmp_path / "again", read(tiny_file))
    assert (tmp_path / "again").read_bytes() == tiny_file.read_bytes()


def test_the_safetensors_library_reads_the_file(tiny_file: Path, tiny_model: PackedModel) -> None:
    stored = raw_arrays(tiny_model)
    entries = dict(safetensors.deserialize(tiny_file.read_bytes()))
    assert entries.keys() == stored.keys()
    for name, entry in entries.items():
        assert bytes(entry["data"]) == stored[name].tobytes()
    with safetensors.safe_open(tiny_file, framework="np") as file:
        assert file.metadata()["format"] == "lowbit"
        np.testing.assert_array_equal(file.get_tensor("norm.scale"), tiny_model.tensors["norm.scale"])


def test_the_safetensors_library_loads_a_file_without_bfloat16(tmp_path: Path, tiny_model: PackedModel) -> None:
    tensors = {name: t for name, t in tiny_model.tensors.items() if not isinstance(t, BFloat16)}
    model = replace(tiny_model, tensors=tensors)
    write(tmp_path / "model", model)
    loaded = load_file(tmp_path / "model")
    for name, array in raw_arrays(model).items():
        np.testing.assert_array_equal(loaded[name], array)


def test_data_starts_on_64_bytes_and_arrays_are_aligned(tiny_file: Path) -> None:
    raw = tiny_file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 64 == 0
    for array in raw_arrays(read(tiny_file)).values():
        assert array.flags.aligned


def test_arrays_are_views_on_the_map(tiny_file: Path) -> None:
    for name, array in raw_arrays(read(tiny_file)).items():
        if name.startswith("tokenizer/"):
            continue
        assert type(array) is np.ndarray
        assert not array.flags.owndata
        assert not array.flags.writeable
        base = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
        assert np.shares_memory(array, base)


def test_an_old_map_survives_an_overwrite(tiny_file: Path, tiny_model: PackedModel) -> None:
    old = read(tiny_file)
    write(tiny_file, replace(tiny_model, tensors={"x": np.zeros(2, np.float32)}), overwrite=True)
    np.testing.assert_array_equal(decode(old.tensors["norm.scale"]), [1.0, 0.5, 2.0])
    assert list(read(tiny_file).tensors) == ["x"]


def test_an_existing_file_is_not_overwritten(tiny_file: Path, tiny_model: PackedModel) -> None:
    before = tiny_file.read_bytes()
    with pytest.raises(FormatError, match=r"tiny.safetensors exists\n  -> choose another name"):
        write(tiny_file, replace(tiny_model, tensors={}))
    assert tiny_file.read_bytes() == before
    with pytest.raises(FormatError, match="is a folder"):
        write(tiny_file.parent, tiny_model)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, tiny_model: PackedModel, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"lowbit.atomic.os.{step}", full)
    with pytest.raises(FormatError, match=r"cannot be written: No space left on device\n  -> free some space"):
        write(tmp_path / "model", tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_file(
    tiny_file: Path, tiny_model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny_file.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowbit.atomic.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tiny_file, replace(tiny_model, tensors={}), overwrite=True)
    assert tiny_file.read_bytes() == before
    assert list(tiny_file.parent.iterdir()) == [tiny_file]


def test_a_missing_folder_is_named(tmp_path: Path, tiny_model: PackedModel) -> None:
    with pytest.raises(FormatError, match=r"No such file or directory\n  -> make the folder .*nowhere first"):
        write(tmp_path / "nowhere" / "model", tiny_model)


def test_the_file_is_as_readable_as_any_other(tmp_path: Path, tiny_file: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"")
    assert tiny_file.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("place", ["norm.scale", "layers.0.int3.kernel.codes", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_found_by_its_checksum(tiny_file: Path, place: str) -> None:
    raw = bytearray(tiny_file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin = json.loads(raw[8 : 8 + length])[place]["data_offsets"][0]
    raw[8 + length + begin] ^= 1
    tiny_file.write_bytes(raw)
    message = rf"tiny.safetensors: tensor '{place}': its bytes do not match their checksum\n  -> the file is damaged"
    with pytest.raises(FormatError, match=message):
        verify_checksums(tiny_file)
    with pytest.raises(FormatError, match=message):
        read(tiny_file, verify=True)
    read(tiny_file)


def test_a_sound_file_passes_verification(tiny_file: Path) -> None:
    verify_checksums(tiny_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": {"a/b": np.ones(1, np.float32)}}, "tensor 'a/b': not a parameter path"),
        ({"tensors": {"a": np.ones(1)}}, "tensor 'a': dtype float64 cannot be stored"),
        ({"tensors": {"a": np.array([np.nan], np.float32)}}, "tensor 'a': the tensor holds NaN or infinity"),
        ({"tokenizer": {"../x": b""}}, "tokenizer file '../x' is not a plain file name"),
        ({"config": {"x": np.float32(1)}}, "config cannot be written as JSON"),
        ({"meta": {"nll": float("nan")}}, "meta cannot be written as JSON"),
    ],
)
def test_a_model_that_is_not_valid_is_not_written(
    tmp_path: Path, tiny_model: PackedModel, change: dict, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write(tmp_path / "model", replace(tiny_model, **change))
    assert list(tmp_path.iterdir()) == []


def test_two_meanings_of_one_grid_are_refused(tmp_path: Path, tiny_model: PackedModel) -> None:
    tensor = tiny_model.tensors["layers.0.binary.kernel"]
    assert isinstance(tensor, PackedTensor)
    other = replace(tensor, levels=np.array([-2, 2], np.float32))
    with pytest.raises(FormatError, match=r"tensor 'b': grid 'binary' has other levels"):
        write(tmp_path / "model", replace(tiny_model, tensors={"a": tensor, "b": other}))


def test_two_arrays_of_one_stored_name_are_refused(tmp_path: Path, tiny_model: PackedModel) -> None:
    tensors = {"a": tiny_model.tensors["layers.0.binary.kernel"], "a.scale": np.ones(1, np.float32)}
    with pytest.raises(FormatError, match=r"two arrays would be stored as 'a\.scale'"):
        write(tmp_path / "model", replace(tiny_model, tensors=tensors))
