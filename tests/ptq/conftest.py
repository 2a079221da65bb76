"""Kernels whose inputs depend on each other, as those of a trained model do, and a decoder of two small layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.llama import LlamaConfig, param_shapes
from lowbit.ptq.moments import Moments
from lowbit.tree import unflatten


@pytest.fixture(scope="session")
def inputs():
    """Inputs f32[512 32] of a few directions and some noise; the first input is large, the last never occurs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 8)) @ rng.standard_normal((8, 32)) + 0.3 * rng.standard_normal((512, 32))
    x[:, 0] *= 10
    x[:, -1] = 0
    return x.astype(np.float32)


@pytest.fixture(scope="session")
def kernel():
    """A kernel f32[32 16]."""
    return jnp.asarray(np.random.default_rng(1).standard_normal((32, 16)).astype(np.float32))


@pytest.fixture(scope="session")
def seen(inputs):
    """Moments of `inputs`, the float model's being the same."""
    gram = jnp.asarray(inputs.T @ inputs / len(inputs))
    magnitude = np.abs(inputs)
    return Moments(gram, gram, jnp.asarray(magnitude.mean(axis=0)), jnp.asarray(magnitude.max(axis=0)))


def decoder(kv_heads: int) -> tuple[LlamaConfig, dict]:
    cfg = LlamaConfig(40, 32, 48, 2, num_heads=4, num_kv_heads=kv_heads, head_dim=8, qkv_bias=True, max_positions=32)
    rng = np.random.default_rng(2)
    flat = {}
    for path, shape in param_shapes(cfg).items():
        flat[path] = rng.standard_normal(shape).astype(np.float32) * (0.2 if "kernel" in path else 1.0)
    return cfg, unflatten(flat)


@pytest.fixture(scope="session")
def model():
    """A decoder with grouped heads: sizes and float parameters."""
    return decoder(2)


@pytest.fixture(scope="session")
def multi_head_model():
    """One whose query heads have value heads of their own."""
    return decoder(4)


@pytest.fixture
def block_of():
    """The parameters of one layer of a model, as jax arrays."""
    return lambda params, index: jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), params["layers"])
