"""Float matrices laid out for a GPU: the same model, nothing of it twice, one product for what has the same inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.export.packed import unpack_params
from lowbit.formats import decode
from lowbit.generation import Generator, from_params, loop
from lowbit.generation.floats import FloatMatrix, OwnLayers
from lowbit.llama import ActivationRounding, LlamaConfig
from lowbit.llama.activations import INT8
from lowbit.tree import flatten, unflatten

LONGEST_SUM = 32


def floats(packed):
    cfg = LlamaConfig.from_hf(packed.config)
    return cfg, unflatten(unpack_params(cfg, packed))


def both(packed, **settings):
    cfg, params = floats(packed)
    return [Generator.from_params(cfg, params, kernels=kernels, **settings) for kernels in ("xla", "gpu")]


def lowered(generator, tokens):
    cache = loop.start(generator.decoder, jnp.zeros(1, jnp.int32), 32)
    return loop.prefill.lower(generator.decoder, generator.weights, jnp.ones((1, tokens), jnp.int32), cache)


def logits(generator, tokens):
    cache = loop.start(generator.decoder, jnp.zeros(1, jnp.int32), 32)
    return loop.prefill(generator.decoder, generator.weights, jnp.asarray([tokens]), cache)[0]


@pytest.mark.parametrize(
    "changes", [{}, {"model_type": "qwen2", "tie_word_embeddings": True}, {"lowbit_linear_norm": True}], ids=str
)
def test_logits_are_those_of_stacks(make, changes):
    """Sums of up to 32 products, in two layers of seven: each rounds by its own order of them."""
    stacked, laid_out = (logits(one, [3, 4, 5]) for one in both(make(**changes)))
    tolerance = 2 * 14 * LONGEST_SUM * float(jnp.finfo(jnp.float32).eps) * float(jnp.max(jnp.abs(stacked)))
    np.testing.assert_allclose(laid_out, stacked, rtol=0, atol=tolerance)


def test_texts_are_those_of_stacks(make):
    stacked, laid_out = (one.generate([[3, 4, 5], [6]], 6, stop_tokens=()).tokens for one in both(make()))
    np.testing.assert_array_equal(laid_out, stacked)


def test_each_layer_lies_by_itself_with_outputs_first(make):
    packed = make()
    _, params = floats(packed)
    weights = from_params(params, jnp.float32, kernels="gpu")
    for number, own in enumerate(weights.by_layer(2)):
        kernels = flatten(own["packed"])
        named = {path: decode(packed.tensors[f"layers.{number}.{path.replace('/', '.')}"]) for path in kernels}
        for path, w in kernels.items():
            rows = w.of(w.whole.rows.T).T if "o_proj" not in path and "down" not in path else w.rows
            np.testing.assert_array_equal(rows, named[path].T, err_msg=path)
    assert isinstance(weights.head, FloatMatrix)
    norms_again = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.layers["apart"]))
    assert weights.nbytes == from_params(params, jnp.float32, kernels="xla").nbytes + norms_again


def test_what_has_the_same_inputs_is_one_product_and_no_layer_is_copied(make):
    stacked, laid_out = both(make(num_hidden_layers=3))
    assert stacked.weights.loops
    assert not laid_out.weights.loops
    for tokens in (1, 4):
        text = lowered(laid_out, tokens).compile().as_text()
        products = [line for line in text.splitlines() if " dot(" in line and "attend" not in line]
        # 4 a layer and the head; the rest are queries with keys, and their weights with values.
        assert len(products) == 3 * (4 + 2) + 1


def test_inputs_that_are_rounded_apart_are_not_joined(make):
    _, params = floats(make())
    rounding = ActivationRounding((("layers/attn/q_proj", INT8),))
    joined = from_params(params, jnp.float32, rounding=rounding, kernels="gpu").layers["joined"]
    assert [len(one.outputs) for one in joined] == [2]


def test_a_packed_model_s_floats_are_laid_out_beside_its_codes(make):
    packed = make(hidden_size=64, intermediate_size=128, head_dim=16)
    for layer in range(2):
        name = f"layers.{layer}.mlp.down_proj.kernel"
        packed.tensors[name] = decode(packed.tensors[name])
    stacked, laid_out = (Generator.from_packed(packed, kernels=kernels) for kernels in ("xla", "gpu"))
    down = laid_out.weights.layers["stacked"]["layers"]["mlp"]["down_proj"]["kernel"]
    assert isinstance(down, OwnLayers)
    first, second = (logits(one, [3, 4, 5]) for one in (stacked, laid_out))
    # The kernel for codes takes bfloat16 activations: 8 bits, in each of 14 products.
    np.testing.assert_allclose(second, first, rtol=0, atol=14 * 2**-8 * float(jnp.max(jnp.abs(first))))


def test_unknown_kernels_are_refused(make):
    with pytest.raises(ConfigError, match="unknown kernels 'cuda'"):
        from_params(floats(make())[1], jnp.float32, kernels="cuda")


def test_bytes_are_those_of_the_dtype(make):
    _, params = floats(make())
    wide, narrow = (from_params(params, dtype, kernels="gpu") for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.layers["stacked"])} == {jnp.dtype(jnp.bfloat16)}
    assert narrow.nbytes < 0.55 * wide.nbytes
