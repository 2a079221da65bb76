"""The container: what is written is read by the gguf library and here; what is damaged is refused with its place."""

import struct
import tempfile

import numpy as np
import pytest
from gguf import GGUFReader

from lowbit.errors import ModelError
from lowbit.gguf import F16, F32, GgufTensor, read, write

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.rope.freq_base": 1e-5,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "ä", ""],
    "tokenizer.ggml.token_type": np.array([1, -2, 3], np.int32),
    "tokenizer.ggml.scores": np.array([0.5, -1.0, 2.0], np.float32),
}
TENSORS = {
    "matrix": GgufTensor(F16, (3, 5), np.arange(15, dtype=np.float16).reshape(3, 5).view(np.uint8)),
    "vector": GgufTensor(F32, (2,), np.array([1.0, -2.0], np.float32).view(np.uint8)),
}


def contents(metadata=METADATA, tensors=TENSORS):
    with tempfile.TemporaryFile() as file:
        write(file, metadata, tensors)
        file.seek(0)
        return file.read()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(contents())
    return path


def test_what_is_written_is_read(path):
    metadata, tensors = read(path)
    assert metadata == {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in METADATA.items()
    }
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name][:2] == tensor[:2]
        np.testing.assert_array_equal(tensors[name].data, tensor.data)


def test_the_gguf_library_reads_the_same(path):
    library = GGUFReader(path)
    ours = read(path)
    fields = {name: field.contents() for name, field in library.fields.items() if not name.startswith("GGUF.")}
    assert fields.keys() == ours.metadata.keys()
    assert fields["llama.rope.freq_base"] == pytest.approx(1e-5)
    assert fields["tokenizer.ggml.tokens"] == ["a", "ä", ""]
    assert fields["tokenizer.ggml.token_type"] == [1, -2, 3]
    for tensor in library.tensors:
        np.testing.assert_array_equal(tensor.data.view(np.uint8), ours.tensors[tensor.name].data)


def test_equal_contents_give_equal_bytes():
    assert contents() == contents()


@pytest.mark.parametrize("value", [-1, 2**32, 1.5j, [1, 2], np.array([1.0]), np.zeros((1, 1), np.float32)])
def test_values_that_the_format_cannot_hold_are_refused(value):
    with pytest.raises(ModelError, match="GGUF metadata key cannot be"):
        contents({"key": value})


def head(version=3, tensors=0, entries=0):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, entries)


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", shape=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def padded(raw, after=64):
    return raw + bytes(-len(raw) % 32) + bytes(after)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it ends within 4 bytes that should be here \(byte 0\)"),
        (b"GGML" + bytes(40), "it does not begin with GGUF"),
        (head(version=1), r"its version is 1, not one of 2, 3 \(byte 4\)"),
        (head(version=3 << 24), "its version is 50331648"),
        (head(tensors=2**63), "it claims 9223372036854775808 tensors, for which it is too short"),
        (head(entries=2**64 - 1), "it claims 18446744073709551615 metadata entries"),
        (head(entries=1) + struct.pack("<Q", 2**60) + bytes(20), "it claims 1152921504606846976 bytes of a key"),
        (head(entries=1) + text(b"\xff") + bytes(20), "a key is not UTF-8"),
        (
            head(entries=1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**62) + bytes(8),
            "4611686018427387904 entries of 'k'",
        ),
        (head(entries=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 3) + bytes(20), "it claims 3 entries of 'k'"),
        (head(entries=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20), "'k' has the type 9, which"),
        (head(entries=1) + text(b"k") + struct.pack("<I", 77) + bytes(20), "'k' has the type 77, which"),
        (head(entries=1) + text(b"k") + struct.pack("<IB", 7, 2) + bytes(20), "'k' is 2, neither true nor false"),
        (head(entries=2) + 2 * (text(b"k") + struct.pack("<II", 4, 1)), "the key 'k' stands twice"),
        (padded(head(tensors=1) + tensor(shape=(1,) * 5)), "tensor 't' has 5 dimensions"),
        (padded(head(tensors=1) + tensor(shape=())), "tensor 't' has 0 dimensions"),
        (padded(head(tensors=1) + tensor(kind=31)), "tensor 't' has the type 31, which is not known"),
        (padded(head(tensors=1) + tensor(kind=42)), r"has shape \[4\], but Q2_0 has blocks of 64"),
        (padded(head(tensors=1) + tensor(shape=(0, 4))), r"has shape \[4, 0\], but F32 has blocks of 1"),
        (padded(head(tensors=1) + tensor(shape=(2**63, 2**63))), "tensor 't' ends at byte"),
        (padded(head(tensors=1) + tensor(offset=8)), "tensor 't' lies at 8, no multiple of 32"),
        (padded(head(tensors=1) + tensor(offset=2**63)), "tensor 't' ends at byte"),
        (padded(head(tensors=2) + tensor() + tensor(b"u")), "tensor 'u' overlaps the one before it"),
        (padded(head(tensors=2) + tensor() + tensor(offset=32)), "the tensor 't' stands twice"),
        (
            padded(head(1 + 2, 0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 33)),
            "general.alignment is 33, not a power of two",
        ),
    ],
)
def test_what_is_no_whole_file_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"m\.gguf is not a whole GGUF file: .*{message}.*\(byte \d+\)|{message}"):
        read(path)


def test_no_flipped_or_missing_byte_gives_anything_but_a_model_error(path):
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for case in range(2000):
        raw = bytearray(sound)
        position = int(rng.integers(len(raw)))
        if case % 4 == 3:
            del raw[position:]
        else:
            raw[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        try:
            read(path)
        except ModelError:
            refused += 1
    assert refused > 500  # truncations, counts and types; a flipped weight or letter is a sound file
