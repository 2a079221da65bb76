"""Products of the compiled kernels in jitted programs, against the reference."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError, DataError, KernelError
from lowbit.ffi import kernel_matrix, matmul
from lowbit.ffi.target import register
from lowbit.formats import PackedTensor
from lowbit.kernels import library, matmul_int8
from lowbit.kernels import matmul as reference_matmul

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")

SEQ2 = np.array([-0.75, -0.25, 0.25, 0.75], np.float32)
EPS = float(np.finfo(np.float32).eps)


def packed(rng: np.random.Generator, k: int, n: int, groups: int, **kwargs) -> PackedTensor:
    codes = rng.integers(0, 4, (k, n)).astype(np.uint8)
    scale = rng.uniform(0.1, 1, (groups, n)).astype(np.float16)
    return PackedTensor.from_codes(codes, scale, SEQ2, "seq2", **kwargs)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("kernels", library.supported())
@pytest.mark.parametrize(("k", "n", "groups"), [(64, 32, 1), (35, 17, 1), (96, 5, 3)])
@pytest.mark.parametrize("with_zero", [False, True])
def test_jitted_products_equal_the_reference(
    rng: np.random.Generator, kernels: str, k: int, n: int, groups: int, with_zero: bool
) -> None:
    zero = rng.uniform(-1, 1, (groups, n)).astype(np.float16) if with_zero else None
    w = packed(rng, k, n, groups, zero=zero)
    x = rng.normal(size=(2, 3, k)).astype(np.float32)
    got = jax.jit(matmul)(jnp.asarray(x), kernel_matrix(w, kernels, threads=2))
    assert got.shape == (2, 3, n)
    np.testing.assert_array_equal(np.asarray(got).reshape(6, n), matmul_int8(x.reshape(6, k), w))


def test_float_activations(rng: np.random.Generator) -> None:
    w = packed(rng, 128, 20, 2)
    x = rng.normal(size=(4, 128)).astype(np.float32)
    got = matmul(jnp.asarray(x), kernel_matrix(w), "float32")
    bound = 2 * (128 + 6) * EPS * (np.abs(x) @ np.abs(w.decode()))  # two float32 sums, each within k eps
    assert (np.abs(np.asarray(got) - reference_matmul(x, w)) <= bound).all()


def test_a_matrix_is_a_tree_of_arrays_and_scans_with_others(rng: np.random.Generator) -> None:
    """Layers of one shape can be stacked and scanned over, as the models do."""
    layers = [packed(rng, 48, 48, 1) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(kernel_matrix(w, threads=1) for w in layers))
    x = rng.normal(size=(2, 48)).astype(np.float32)
    got, _ = jax.jit(lambda x, stacked: jax.lax.scan(lambda x, w: (matmul(x, w), None), x, stacked))(
        jnp.asarray(x), stacked
    )
    for w in layers:
        x = matmul_int8(x, w)
    np.testing.assert_array_equal(np.asarray(got), x)


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    w = kernel_matrix(packed(rng, 32, 8, 1))
    with pytest.raises(DataError, match=r"activations are float32\[2, 31\]\n  -> give float32\[... 32\]"):
        matmul(jnp.zeros((2, 31)), w)
    with pytest.raises(ConfigError, match=r"unknown activations 'int9'\n  -> did you mean 'int8'"):
        matmul(jnp.zeros((2, 32)), w, "int9")
    with pytest.raises(KernelError, match="numpy cannot be called from a jitted program"):
        kernel_matrix(packed(rng, 32, 8, 1), "numpy")
    with pytest.raises(Exception, match="activations hold NaN or infinity"):
        jax.block_until_ready(jax.jit(matmul)(jnp.full((1, 32), jnp.nan), w))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    kernels = library.library_path()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(library, "library_path", lambda: kernels)
    monkeypatch.setattr(library, "cache_folder", lambda: tmp_path)
    register.cache_clear()
    yield
    register.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_says_so() -> None:
    with pytest.raises(KernelError, match=r"no C\+\+ compiler: no-such-compiler is not there\n  -> install a C\+\+"):
        register()
