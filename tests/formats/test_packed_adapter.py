"""Adapters in the packed file: stored, read, added in a fixed order, counted, and refused where they do not fit."""

import dataclasses

import numpy as np
import pytest

from lowbit import formats
from lowbit.errors import FormatError
from lowbit.formats import Adapter, PackedModel, PackedTensor

K, N, RANK = 10, 6, 3
LEVELS = np.array([-1.0, -0.3, 0.4, 1.0], np.float32)


def make_adapter(k=K, n=N, rank=RANK):
    rng = np.random.default_rng(1)
    return Adapter(*(rng.standard_normal(shape).astype(np.float16) for shape in ((k, rank), (rank, n))))


def make(adapter=None, **changes):
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(0, 4, (K, N)).astype(np.uint8), rng.uniform(0.1, 1.0, (2, N)).astype(np.float16)
    return PackedTensor.from_codes(codes, scale, LEVELS, "odd", adapter=adapter or make_adapter(), **changes)


@pytest.fixture
def path(tmp_path):
    """Of a file with a matrix that has an adapter, and one that has none."""
    target = tmp_path / "model.lowbit"
    tensor = make()
    formats.write(target, PackedModel({"a.kernel": tensor, "b.kernel": tensor.without_adapter()}, {}))
    return target


def test_weights_are_what_codes_decode_to_plus_one_sum_in_order():
    tensor = make()
    total = np.zeros((K, N), np.float32)
    for r in range(RANK):
        total = total + np.outer(tensor.adapter.a[:, r].astype(np.float32), tensor.adapter.b[r].astype(np.float32))
    expected = tensor.without_adapter().decode() + total
    np.testing.assert_array_equal(tensor.decode().view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(tensor.outputs(slice(2, 5)).decode(), expected[:, 2:5])
    np.testing.assert_array_equal(tensor.outputs(np.array([4, 0])).decode(), expected[:, [4, 0]])


def test_the_file_gives_back_what_was_written(path):
    read, tensor = formats.read(path, verify=True), make()
    np.testing.assert_array_equal(read.tensors["a.kernel"].adapter.a, tensor.adapter.a)
    np.testing.assert_array_equal(read.tensors["a.kernel"].adapter.b, tensor.adapter.b)
    assert read.tensors["b.kernel"].adapter is None
    assert read.adapters().keys() == {"a.kernel"}
    assert not read.without_adapters().adapters()
    with_adapter, without = formats.summarize(read).rows
    assert with_adapter.grid == "odd + rank 3"
    assert with_adapter.nbytes - without.nbytes == 2 * RANK * (K + N)
    assert with_adapter.bits - without.bits == pytest.approx(16 * RANK * (K + N) / (K * N), rel=1e-12)


def test_any_safetensors_library_finds_the_factors(path):
    from safetensors.numpy import load_file

    arrays = load_file(path)
    assert arrays["a.kernel.lora_a"].shape == (K, RANK)
    assert arrays["a.kernel.lora_b"].shape == (RANK, N)
    assert not [name for name in arrays if name.startswith("b.kernel.lora")]


def test_a_damaged_factor_is_found_by_its_checksum(path):
    raw = bytearray(path.read_bytes())
    factor = make_adapter().b.tobytes()
    raw[raw.index(factor) + 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"tensor 'a.kernel.lora_b': its bytes do not match their checksum"):
        formats.read(path, verify=True)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (make_adapter(k=K - 1), r"factors of the adapter are float16\[9, 3\] and .*\n  -> store float16 \[k r\] and"),
        (make_adapter(n=N + 1), r"float16\[10, 3\] and float16\[3, 7\]"),
        (Adapter(make_adapter().a, make_adapter().b[:2]), r"float16\[10, 3\] and float16\[2, 6\]"),
        (Adapter(make_adapter().a.astype(np.float32), make_adapter().b), r"float32\[10, 3\]"),
        (Adapter(make_adapter().a[0], make_adapter().b), r"float16\[3\] and"),
        (make_adapter(rank=0), r"an adapter of rank 0 for .*\n  -> store a rank of 1 to the smaller side"),
        (make_adapter(rank=7), r"an adapter of rank 7"),
    ],
)
def test_factors_that_do_not_fit_are_refused(adapter, message):
    with pytest.raises(FormatError, match=message):
        make(adapter)


def test_factors_that_are_no_numbers_or_of_an_embedding_are_refused(tmp_path):
    broken = make()
    broken = dataclasses.replace(broken, adapter=Adapter(np.full_like(broken.adapter.a, np.inf), broken.adapter.b))
    with pytest.raises(FormatError, match=r"tensor 'a.kernel': the adapter holds NaN or infinity"):
        formats.write(tmp_path / "x.lowbit", PackedModel({"a.kernel": broken}, {}))
    with pytest.raises(FormatError, match="the adapter holds NaN or infinity"):
        broken.decode()
    with pytest.raises(FormatError, match="a transposed matrix has an adapter\n  -> add it to the weights"):
        make(transposed=True)


@pytest.fixture
def tiny_model():
    """What the forger of headers works on: see conftest."""
    return PackedModel({"a.kernel": make()}, {})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda entries, m: m["packed"]["a.kernel"].update(adapter=False), "adapter = False is not true"),
        (lambda entries, m: m["packed"]["a.kernel"].update(adapters=True), "needs exactly"),
        (lambda entries, m: m["packed"]["a.kernel"].update(shape=[K, N + 1]), "codes are"),
        (
            lambda entries, m: entries["a.kernel.lora_a"].update(shape=[RANK, K]),
            r"factors of the adapter are float16\[3, 10\]",
        ),
        (
            lambda entries, m: entries["a.kernel.lora_a"].update(dtype="BF16"),
            "dtype is BF16, not F16",
        ),
        (
            lambda entries, m: (
                entries.update({"a.kernel.other": entries.pop("a.kernel.lora_b")}),
                m["checksums"].update({"a.kernel.other": m["checksums"].pop("a.kernel.lora_b")}),
            ),
            "array 'a.kernel.lora_b' is missing",
        ),
    ],
)
def test_forged_headers_are_refused(forge, edit, message):
    with pytest.raises(FormatError, match=message):
        formats.read(forge(edit))


def test_factors_that_the_table_does_not_name_are_no_part_of_the_matrix(forge):
    read = formats.read(forge(lambda entries, m: m["packed"]["a.kernel"].pop("adapter")))
    # They are then parameters of their own, which no config knows: every runtime refuses them.
    assert read.tensors.keys() == {"a.kernel", "a.kernel.lora_a", "a.kernel.lora_b"}
