"""A factor for each input of a matrix: stored, read, decoded, refused where it does not fit, run by every kernel."""

import dataclasses

import numpy as np
import pytest

from lowbit import formats
from lowbit.errors import FormatError
from lowbit.formats import PackedModel, PackedTensor
from lowbit.kernels import Runtime, library, reference
from lowbit.kernels.matrix import CompiledMatrix

BINARY = np.array([-1.0, 1.0], np.float32)


def make(k=40, n=6, groups=1, transposed=False):
    rng = np.random.default_rng(0)
    return PackedTensor.from_codes(
        rng.integers(0, 2, (k, n)).astype(np.uint8),
        rng.uniform(0.1, 1.0, (groups, n)).astype(np.float16),
        BINARY,
        "binary",
        transposed=transposed,
        in_scale=rng.uniform(0.1, 1.0, k).astype(np.float16),
    )


@pytest.mark.parametrize("groups", [1, 5])
def test_a_weight_is_its_level_times_both_factors(groups):
    tensor = make(groups=groups)
    levels = BINARY[tensor.codes()]
    outputs = np.repeat(tensor.scale.astype(np.float64), 40 // groups, axis=0)
    # The product of two fp16 numbers has at most 22 digits: float32 holds it, in whatever order.
    expected = levels * outputs * tensor.in_scale.astype(np.float64)[:, None]
    np.testing.assert_array_equal(tensor.decode(), expected)
    np.testing.assert_array_equal(dataclasses.replace(tensor, transposed=True).decode(), expected.T)
    np.testing.assert_array_equal(tensor.outputs(slice(2, 4)).decode(), expected[:, 2:4])


def test_the_file_gives_back_what_was_written(tmp_path):
    tensor = make()
    path = tmp_path / "model.lowbit"
    formats.write(path, PackedModel({"a.kernel": tensor, "b.kernel": dataclasses.replace(tensor, in_scale=None)}, {}))
    read = formats.read(path, verify=True)
    np.testing.assert_array_equal(read.tensors["a.kernel"].in_scale, tensor.in_scale)
    assert read.tensors["b.kernel"].in_scale is None
    # One bit and two fp16 vectors, padding aside: 1 + 16/k + 16/n.
    assert formats.summarize(read).rows[0].bits == pytest.approx(1 + 16 / 40 + 16 / 6, rel=1e-12)


def test_a_factor_that_does_not_fit_is_refused(tmp_path):
    tensor = make()
    short = dataclasses.replace(tensor, in_scale=tensor.in_scale[:-1])
    with pytest.raises(
        FormatError, match=r"in_scale is float16\[39\] for 40 inputs and a scale of float16\n  -> store"
    ):
        short.validate()
    with pytest.raises(FormatError, match=r"in_scale is float32\[40\]"):
        dataclasses.replace(tensor, in_scale=tensor.in_scale.astype(np.float32)).validate()
    broken = dataclasses.replace(tensor, in_scale=np.full(40, np.nan, np.float16))
    with pytest.raises(FormatError, match="in_scale holds NaN or infinity"):
        formats.write(tmp_path / "broken.lowbit", PackedModel({"a.kernel": broken}, {}))
    with pytest.raises(FormatError, match="in_scale holds NaN or infinity"):
        broken.decode()


@pytest.mark.parametrize("groups", [1, 5])
def test_every_kernel_multiplies_by_it_first(groups):
    tensor = make(groups=groups)
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    bare = dataclasses.replace(tensor, in_scale=None)
    scaled = x * tensor.in_scale.astype(np.float32)
    exact = scaled.astype(np.float64) @ reference.kernel(bare).astype(np.float64)
    size = np.abs(scaled).astype(np.float64) @ np.abs(reference.kernel(bare)).astype(np.float64)
    # A sum of 40 products in any order, two roundings in front of each.
    tolerance = 42 * 2.0**-24 * size
    for matmul in (reference.matmul, reference.matmul_levels):
        assert np.all(np.abs(matmul(x, tensor) - exact) <= tolerance)
    of_codes = reference.matmul_int8(scaled, bare)
    np.testing.assert_array_equal(reference.matmul_int8(x, tensor), of_codes)
    isa = library.choose("auto")
    if isa != "numpy":
        compiled = CompiledMatrix(tensor, isa, 1)
        assert not compiled.struct_is_all
        np.testing.assert_array_equal(compiled.matmul(x, "int8"), of_codes)
        assert np.all(np.abs(compiled.matmul(x, "float32") - exact) <= tolerance)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norms behind kernels"])
def test_compiled_kernels_run_what_numpy_runs(make_packed, norm):
    packed = make_packed()
    rng = np.random.default_rng(2)
    for name, tensor in packed.tensors.items():
        if isinstance(tensor, PackedTensor) and not tensor.transposed:
            factors = rng.uniform(0.5, 1.5, tensor.shape[0]).astype(tensor.scale.dtype)
            packed.tensors[name] = dataclasses.replace(tensor, in_scale=factors)
    packed.config["lowbit_linear_norm"] = norm
    tokens = rng.integers(0, 40, (2, 7))
    expected = Runtime(packed).forward(tokens)
    packed.config["lowbit_linear_norm"] = not norm
    assert np.abs(Runtime(packed).forward(tokens) - expected).max() > 0.01
    packed.config["lowbit_linear_norm"] = norm
    if library.choose("auto") != "numpy":
        compiled = Runtime(packed, kernels="auto", activations="float32").forward(tokens)
        # Two orders of float32 sums, through two layers: some tens of roundings of logits of size 1.
        np.testing.assert_allclose(compiled, expected, atol=1e-4 * np.abs(expected).max())
