"""The mean of magnitudes that a quantizer computes anew at every step: equal bits, whoever computes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowbit.numerics import groups
from lowbit.numerics.quantizers import absmean_ternary
from lowbit.numerics.scales import mean_magnitude


def weights(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_t(4, size=shape).astype(np.float32))


@pytest.mark.parametrize("granularity", ["channel", "tensor", 24])
def test_mean_is_the_mean(granularity):
    grouped = groups.split(weights(2, 72, 5), granularity)
    exact = np.abs(np.asarray(grouped, np.float64)).mean(axis=-2)
    # A sum of n numbers in a tree of 8 is off by at most 7 roundings a level; then one of 1/n and one of the product.
    roundings = 7 * np.ceil(np.log2(grouped.shape[-2]) / 3) + 2
    np.testing.assert_allclose(mean_magnitude(grouped), exact, rtol=roundings * 2.0**-24)


def test_mean_of_one_weight_is_its_magnitude():
    np.testing.assert_array_equal(mean_magnitude(jnp.asarray([[[-3.0]]])), [[3.0]])


def test_every_program_finds_the_same_scale(optimized):
    """Among them are those of a training step, of an export and of a mesh; a reduction differs in a third of scales."""
    stack = weights(6, 192, 512)
    quantizer = absmean_ternary("channel", jnp.float32)

    def scale(w):
        return quantizer.encode(w, quantizer.init(w)).scale

    jit = functools.partial(jax.jit, compiler_options=optimized)
    eager = np.asarray(scale(stack))
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("fsdp", "tensor"))
    cut = jax.device_put(stack, NamedSharding(mesh, PartitionSpec(None, "tensor", "fsdp")))
    others = {
        "stack": jit(scale)(stack),
        "layers": jnp.stack([jit(scale)(w) for w in stack]),
        "scan": jit(lambda ws: jax.lax.scan(lambda _, w: (0, scale(w)), 0, ws)[1])(stack),
        "vmap": jit(jax.vmap(scale))(stack),
        "mesh": jit(scale)(cut),
    }
    for name, found in others.items():
        np.testing.assert_array_equal(np.asarray(found), eager, err_msg=name)
