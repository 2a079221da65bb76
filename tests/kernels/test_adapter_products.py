"""Products with adapters: every form of them in numpy, compiled kernels bit for bit, whole models."""

import dataclasses

import numpy as np
import pytest

from lowbit.errors import DataError, QuantizerError
from lowbit.ffi import kernel_matrix
from lowbit.formats import Adapter, PackedTensor
from lowbit.kernels import Runtime, library, reference
from lowbit.kernels.matrix import CompiledMatrix

NF = (-1.0, -0.7, -0.2, 0.0, 0.3, 0.6, 1.0)
GRIDS = {"int4": tuple(map(float, range(-8, 8))), "codebook": NF}


def adapter_of(k, n, rank=3, seed=5, size=0.1):
    rng = np.random.default_rng(seed)
    return Adapter(*((size * rng.standard_normal(shape)).astype(np.float16) for shape in ((k, rank), (rank, n))))


def make(grid, k=48, n=20, in_scale=False):
    rng = np.random.default_rng(0)
    return PackedTensor.from_codes(
        rng.integers(0, len(GRIDS[grid]), (k, n)).astype(np.uint8),
        rng.uniform(0.1, 1.0, (3, n)).astype(np.float16),
        np.array(GRIDS[grid], np.float32),
        grid,
        in_scale=rng.uniform(0.5, 1.5, k).astype(np.float16) if in_scale else None,
        adapter=adapter_of(k, n),
    )


@pytest.mark.parametrize("in_scale", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_form_is_the_product_with_the_decoded_weights(grid, in_scale):
    tensor = make(grid, in_scale=in_scale)
    x = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    parts = (tensor.without_adapter().decode(), tensor.adapter.product())
    exact = x.astype(np.float64) @ tensor.decode().astype(np.float64)
    # Sums of 48 terms of either part, and of 3 ranks, in any order, and the rounding of what is decoded.
    size = sum(np.abs(x).astype(np.float64) @ np.abs(part).astype(np.float64) for part in parts)
    size += np.abs(x) @ (np.abs(tensor.adapter.a).astype(np.float64) @ np.abs(tensor.adapter.b).astype(np.float64))
    tolerance = 60 * 2.0**-24 * size
    products = [reference.matmul(x, tensor), reference.matmul_levels(x, tensor)]
    if library.choose("auto") != "numpy":
        products.append(CompiledMatrix(tensor, library.choose("auto"), 1).matmul(x, "float32"))
    for product in products:
        assert np.all(np.abs(product - exact) <= tolerance)


@pytest.mark.parametrize("in_scale", [False, True])
def test_compiled_products_of_rounded_activations_are_those_of_numpy_bit_for_bit(in_scale):
    isa = library.choose("auto")
    if isa == "numpy":
        pytest.skip("no compiler")
    tensor = make("int4", in_scale=in_scale)
    x = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    expected = reference.matmul_int8(x, tensor)
    compiled = CompiledMatrix(tensor, isa, 1)
    np.testing.assert_array_equal(compiled.matmul(x, "int8"), expected)
    assert compiled.nbytes > CompiledMatrix(tensor.without_adapter(), isa, 1).nbytes
    # An adapter meets activations as they were rounded.
    tokens = reference.quantize_activations(x)
    rounded = tokens.codes.astype(np.float32) * tokens.scale
    bare = reference.matmul_int8(x, tensor.without_adapter())
    np.testing.assert_array_equal(expected, bare + tensor.adapter.matmul(rounded))
    with pytest.raises(DataError, match="activations hold NaN"):
        compiled.matmul(np.full((1, 48), np.nan, np.float32), "int8")


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_models_run_alike_in_every_way(make_packed, activations):
    packed = make_packed()
    for seed, (name, tensor) in enumerate(packed.tensors.items()):
        if isinstance(tensor, PackedTensor) and not tensor.transposed and ".mlp." in name:
            adapter = adapter_of(*tensor.shape, rank=1 + seed % 3, seed=seed, size=0.3)
            packed.tensors[name] = dataclasses.replace(tensor, adapter=adapter)
    tokens = np.random.default_rng(2).integers(0, 40, (2, 7))
    expected = Runtime(packed, activations=activations).forward(tokens)
    assert np.abs(Runtime(packed.without_adapters(), activations=activations).forward(tokens) - expected).max() > 0.01
    runtimes = [Runtime(packed, storage="packed", activations=activations)]
    if library.choose("auto") != "numpy":
        runtimes.append(Runtime(packed, kernels="auto", activations=activations))
    for runtime in runtimes:
        # Two orders of float32 sums, through two layers: some tens of roundings of logits of size 1.
        np.testing.assert_allclose(runtime.forward(tokens), expected, atol=1e-4 * np.abs(expected).max())


def test_products_that_add_no_adapter_refuse_it():
    with pytest.raises(QuantizerError, match=r"this product adds no adapter\n  -> multiply by w\.without_adapter"):
        kernel_matrix(make("int4"))
