"""The kernel inside a scan over layers, which looks for what does not depend on the layer and drops the rest."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lowbit import pallas
from lowbit.formats import PackedTensor
from lowbit.models.layers import STACKED

LAYERS, K = 3, 64


class Multiplied(nn.Module):
    """One layer: its part of a stack that all of them are given whole."""

    @nn.compact
    def __call__(self, x, layer):
        stack = self.get_variable(STACKED, "kernel")
        return pallas.matmul(x, stack.of_layer(layer), "interpreted"), None


def test_a_scan_over_layers_may_be_given_the_whole_stack():
    rng = np.random.default_rng(0)
    scale = np.full((1, K), 0.125, np.float16)
    tensors = [
        PackedTensor.from_codes(
            rng.integers(0, 4, (K, K)).astype(np.uint8), scale, np.float32([-0.75, -0.25, 0.25, 0.75]), "grid"
        )
        for _ in range(LAYERS)
    ]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(pallas.from_tensor, tensors))
    x = jnp.asarray(rng.normal(size=(2, K)), jnp.float32)
    scanned = nn.scan(Multiplied, variable_broadcast=STACKED, in_axes=0, length=LAYERS)
    got, _ = scanned().apply({STACKED: {"kernel": stack}}, x, jnp.arange(LAYERS))
    expected = x
    for number in range(LAYERS):
        expected = pallas.matmul(expected, stack.of_layer(jnp.int32(number)), "interpreted")
    np.testing.assert_array_equal(got, expected)
