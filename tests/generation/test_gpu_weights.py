"""Packed models laid out for the GPU's kernel write what they write from the file's bytes; here XLA multiplies."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError, QuantizerError
from lowbit.generation import Generator, from_packed
from lowbit.generation.packed import decode
from lowbit.llama import LlamaConfig

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""Groups of 32 and 64 inputs."""


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_tokens_are_those_of_the_files_bytes(make, activations):
    """The integers are the same, and float sums differ in their order: random logits have no ties."""
    packed = make(**WIDE)
    made = {
        kernels: Generator.from_packed(packed, activations=activations, kernels=kernels).generate(
            [[3, 4, 5], [6]], 6, stop_tokens=()
        )
        for kernels in ("xla", "gpu")
    }
    np.testing.assert_array_equal(made["gpu"].tokens, made["xla"].tokens)


def test_an_embedding_is_looked_up_as_it_is_stored(make):
    packed = make(**WIDE)
    cfg = LlamaConfig.from_hf(packed.config)
    laid_out, plain = (from_packed(cfg, packed, jnp.float32, kernels).embedding for kernels in ("gpu", "xla"))
    index = jnp.asarray([5, 0, 5, 39])
    np.testing.assert_array_equal(laid_out.rows(index), decode(plain.rows(index)))


def test_stacks_stay_whole(make):
    packed = make(**WIDE)
    weights = from_packed(LlamaConfig.from_hf(packed.config), packed, jnp.bfloat16, "gpu")
    stack = weights.layers["stacked"]["layers"]["mlp"]["down_proj"]["kernel"]
    assert stack.words[0].shape[0] == 2
    np.testing.assert_array_equal(weights.variables()["packed"]["layers"]["mlp"]["down_proj"]["kernel"], [0, 1])


def test_what_the_kernel_does_not_take_is_refused_or_left(make):
    packed = make()  # groups of 12 inputs
    cfg = LlamaConfig.from_hf(packed.config)
    with pytest.raises(QuantizerError, match="12 inputs a scale do not meet a plane of 32"):
        from_packed(cfg, packed, jnp.bfloat16, "gpu")
    assert not from_packed(cfg, packed, jnp.bfloat16).layers["stacked"]
    with pytest.raises(ConfigError, match="unknown kernels 'cuda'"):
        from_packed(cfg, packed, jnp.bfloat16, "cuda")
