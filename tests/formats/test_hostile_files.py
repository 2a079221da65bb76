"""Files that are damaged, forged or no packed files at all: always a FormatError, never anything else."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.errors import FormatError
from lowbit.formats import PackedModel, decode, read, write

Forge = Callable[[Callable[[dict[str, Any], dict[str, Any]], None]], Path]


def test_forging_without_an_edit_gives_a_sound_file(forge: Forge) -> None:
    read(forge(lambda entries, metadata: None), verify=True)


def test_no_flipped_or_missing_byte_gives_anything_but_a_format_error(tmp_path: Path, tiny_model: PackedModel) -> None:
    tiny_file = tmp_path / "tiny"
    names = ("layers.0.int3.kernel", "layers.0.ternary.kernel", "norm.scale")
    tensors = {name: tiny_model.tensors[name] for name in names}
    write(tiny_file, replace(tiny_model, tensors=tensors))
    sound = tiny_file.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    rng = np.random.default_rng(0)
    for case in range(2000):
        raw = bytearray(sound)
        position = int(rng.integers(len(raw) if case % 2 else 8 + case // 2 % (len(raw) - 8)))
        if case % 4 == 3:
            del raw[position:]
        else:
            raw[position] ^= 1 << int(rng.integers(8))
        tiny_file.write_bytes(raw)
        # The header and the length prove themselves; the arrays do only where all of them are read.
        in_arrays = position >= header and len(raw) == len(sound)
        with pytest.raises(FormatError):
            read(tiny_file, verify=in_arrays)
        if in_arrays:
            for tensor in read(tiny_file).tensors.values():
                with contextlib.suppress(FormatError):
                    decode(tensor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are too few"),
        (b"1234567", "7 bytes are too few"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file, and no packed one\n  -> let lowbit's export make"),
        (b"\xff" * 64, "claims a header of 18446744073709551615 bytes"),
        (bytes(64), "claims a header of 0 bytes"),
        ((99_999_999).to_bytes(8, "little") + b"{}", "truncated: the header ends at byte 100000007, the file at 10"),
        ((2).to_bytes(8, "little") + b"[]", "no packed file: the header is a JSON list"),
        ((2).to_bytes(8, "little") + b"{]", "no packed file: the header is not JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "no packed file: the header is not JSON"),
        ((2).to_bytes(8, "little") + b"{}", "a safetensors file, but no packed file"),
        ((13).to_bytes(8, "little") + b'{"a":1,"a":2}', "a key stands twice"),
        ((7).to_bytes(8, "little") + b'{"a":NaN}'[:7], "not JSON"),
        ((9).to_bytes(8, "little") + b'{"a":NaN}', "NaN is not JSON"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "not JSON"),
    ],
)
def test_what_is_no_packed_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"odd: .*{message}"):
        read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nothing: cannot be read: No such file"):
        read(tmp_path / "nothing")
    with pytest.raises(FormatError, match="cannot be read: Is a directory"):
        read(tmp_path)


def set_in(place: str, key: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(entries: dict[str, Any], metadata: dict[str, Any]) -> None:
        table, _, name = place.partition("/")
        target = {"entries": entries, "metadata": metadata}.get(table) or metadata[table]
        (target[name] if name else target)[key] = value

    return edit


def drop(place: str, key: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(entries: dict[str, Any], metadata: dict[str, Any]) -> None:
        del ({"entries": entries, "metadata": metadata}.get(place) or metadata[place])[key]

    return edit


CODES, SCALE = "layers.0.seq2.kernel.codes", "layers.0.seq2.kernel.scale"
ENTRY = "packed/layers.0.seq2.kernel"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_in("metadata", "format", "pt"), "no packed file of lowbit's"),
        (set_in("metadata", "version", "2"), r"version 2, this lowbit reads version 1\n  -> install a newer"),
        (set_in("metadata", "version", "0"), r"version 0, .*\n  -> export the model again"),
        (set_in("metadata", "version", "9" * 5000), "has format version 9999"),
        (set_in("metadata", "surprise", "1"), "metadata key 'surprise' is unknown"),
        (drop("metadata", "grids"), "metadata key 'grids' is missing or no string"),
        (set_in("metadata", "grids", "[]"), "the table of grids is a JSON list"),
        (set_in("metadata", "config", "{"), "config is not JSON"),
        (set_in("metadata", "config", '{"x":1e999}'), "1e999 is too large"),
        (drop("checksums", CODES), f"tensor '{CODES}': the checksums and the arrays do not name the same"),
        (set_in("checksums", "ghost", "00"), "tensor 'ghost': the checksums and the arrays"),
        (set_in("grids", "seq2", [1, 2]), "4 levels|2 levels are packed as 'u2'"),
        (set_in("grids", "seq2", [1, 2, 3, "x"]), "grid 'seq2' is no list of 2 to 256 float32 numbers"),
        (set_in("grids", "seq2", [1, 2, 3, 0.1]), "grid 'seq2' is no list"),
        (set_in("grids", "seq2", [1, 2, 3, 10**400]), "grid 'seq2' is no list"),
        (set_in("grids", "seq2", [1, 2, 3, True]), "grid 'seq2' is no list"),
        (set_in("grids", "seq2", [1, 2, 3, 3]), "tensor 'layers.0.seq2.kernel': levels repeat"),
        (drop("grids", "seq2"), "grid 'seq2' is not in the table of grids"),
        (drop("packed", "layers.0.seq2.kernel"), "dtype uint8 cannot be stored"),
        (set_in("packed", "ghost", 1), "tensor 'ghost': needs exactly grid, packing"),
        (set_in(ENTRY, "packing", "u4"), "4 levels are packed as 'u4'"),
        (set_in(ENTRY, "packing", 4), "packing = 4 is no str"),
        (set_in(ENTRY, "shape", [10]), r"shape \[10\] is no \[k n\]"),
        (set_in(ENTRY, "shape", [11, 4]), r"tensor 'layers.0.seq2.kernel': codes are uint8\[3, 3\], but"),
        (set_in(ENTRY, "shape", [0, 3]), "is empty"),
        (set_in(ENTRY, "shape", [2**62, 2**62]), "codes are"),
        (set_in(ENTRY, "zero", True), "array 'layers.0.seq2.kernel.zero' is missing"),
        (set_in("entries/norm.scale", "dtype", "BF16"), None),
        (set_in("entries/norm.scale", "dtype", "F64"), "tensor 'norm.scale': dtype 'F64' is none of"),
        (set_in("entries/norm.scale", "dtype", ["F16"]), "tensor 'norm.scale': dtype"),
        (set_in("entries/norm.scale", "shape", [4]), r"F16\[4\] does not fill its 6 bytes"),
        (set_in("entries/norm.scale", "shape", [-3]), r"\[-3\] is no shape"),
        (set_in("entries/norm.scale", "shape", [2**70]), "is no shape"),
        (set_in("entries/norm.scale", "shape", [True, 3]), "is no shape"),
        (set_in("entries/norm.scale", "shape", [1] * 9 + [3]), "is no shape"),
        (set_in("entries/norm.scale", "shape", 3), "3 is no shape"),
        (set_in("entries/norm.scale", "data_offsets", [6, 0]), r"data_offsets \[6, 0\] are no range"),
        (set_in("entries/norm.scale", "data_offsets", [0, 6]), "overlaps the array before it|overlaps"),
        (set_in("entries/norm.scale", "data_offsets", [2**40, 2**40 + 6]), "leaves a gap after"),
        (set_in("entries/norm.scale", "data_offsets", [1, 7]), "not aligned to 2 bytes"),
        (set_in("entries/norm.scale", "extra", 1), "needs exactly dtype, shape and data_offsets"),
        (set_in("entries", "norm.scale", [1]), "needs exactly dtype, shape and data_offsets"),
        (drop("entries", "norm.scale"), "tensor '.*' leaves a gap after the array before it"),
        (set_in(f"entries/{SCALE}", "shape", [3, 1]), r"scale has shape \[3, 1\]"),
        (set_in(f"entries/{SCALE}", "dtype", "BF16"), "dtype is BF16, not F16 or F32"),
        (set_in(f"entries/{CODES}", "shape", [9, 1]), r"codes are uint8\[9, 1\]"),
    ],
)
def test_a_forged_header_is_refused(
    forge: Forge, edit: Callable[[dict[str, Any], dict[str, Any]], None], message: str | None
) -> None:
    path = forge(edit)
    if message is None:  # odd, but nothing that a reader can know to be wrong
        read(path)
        return
    with pytest.raises(FormatError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_bytes_after_the_last_array_are_refused(tiny_file: Path) -> None:
    tiny_file.write_bytes(tiny_file.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="bytes left over: the arrays end at byte"):
        read(tiny_file)


def test_a_cut_in_the_arrays_is_called_truncated(tiny_file: Path) -> None:
    tiny_file.write_bytes(tiny_file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated: the arrays end at byte"):
        read(tiny_file)


def test_a_header_that_was_edited_by_hand_is_refused(tiny_file: Path) -> None:
    raw = tiny_file.read_bytes()
    assert raw.count(b"tiny") == 1
    tiny_file.write_bytes(raw.replace(b"tiny", b"tidy"))
    with pytest.raises(FormatError, match="the header does not match its own checksum"):
        read(tiny_file)
