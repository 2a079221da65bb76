"""Documents packed into one window: with a separator, each is computed as if it stood alone."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowbit.linen import quantize
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import Transformer
from lowbit.models.attention import causal_attention, document_positions, rotary_tables, rotate
from lowbit.models.placement import ROWS, WIDTH, on_mesh
from lowbit.numerics.quantizers import paretoq, stored_as
from lowbit.tree import Rule, init_state

SEPARATOR = 3
CFG = LlamaConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=32,
)
RULES = (Rule("layers/.*_proj/kernel", paretoq(4)), Rule(".*", stored_as(jnp.float16)))
FIRST = jnp.asarray([[SEPARATOR, 5, 9, 11, 5, 17]], jnp.int32)  # of one length, so that one program computes both
SECOND = jnp.asarray([[SEPARATOR, 7, 8, 30, 2, 6]], jnp.int32)
PACKED = jnp.concatenate([FIRST, SECOND], axis=1)


def random_params():
    rng = np.random.default_rng(0)
    flat = {path: jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32) for path, shape in param_shapes(CFG).items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


PARAMS = random_params()


def test_positions_restart_and_only_tokens_of_one_document_share_it():
    tokens = jnp.asarray([[5, 6, SEPARATOR, 7, SEPARATOR, SEPARATOR, 8], [SEPARATOR, 1, 1, 1, 1, 1, 1]], jnp.int32)
    positions, same = document_positions(tokens, SEPARATOR)
    np.testing.assert_array_equal(positions, [[0, 1, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6]])
    documents = np.array([[0, 0, 1, 1, 2, 3, 3], [0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(same, (documents[:, :, None] == documents[:, None, :])[:, None])
    assert (positions.dtype, same.dtype) == (jnp.int32, jnp.bool_)


def test_rotation_takes_a_table_for_each_row():
    cos, sin = rotary_tables(CFG, 12)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4, 8)), jnp.float32)
    places = jnp.asarray([[0, 1, 2], [7, 0, 11]])
    turned = rotate(x, cos[places], sin[places])
    for row in range(2):
        alone = rotate(x[row : row + 1], cos[places[row]], sin[places[row]])
        np.testing.assert_array_equal(turned[row : row + 1], alone)


def model(quantized, remat, separator=SEPARATOR):
    if not quantized:
        return Transformer(CFG, remat=remat, separator=separator), {}
    transform = lambda cls, prefix: quantize(cls, RULES, prefix)  # noqa: E731
    return Transformer(CFG, remat=remat, transform=transform, separator=separator), init_state(RULES, PARAMS)


def wave(logits):
    """Some smooth loss of order 1 a logit."""
    return jnp.sum(jnp.sin(logits))


@pytest.mark.parametrize(
    ("quantized", "remat"), [(False, "none"), pytest.param(False, "full", marks=pytest.mark.slow), (True, "dots")]
)
def test_two_documents_in_a_window_are_computed_as_each_alone(quantized, remat):
    decoder, state = model(quantized, remat)

    def loss(params, tokens):
        logits = decoder.apply({"params": params, **state}, tokens)
        return wave(logits), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, packed), gradient = run(PARAMS, PACKED)
    ((_, first), of_first), ((_, second), of_second) = run(PARAMS, FIRST), run(PARAMS, SECOND)
    # One row of attention is a sum over at most 12 positions, masked ones adding exact zeros: the same float32 sums,
    # perhaps in another order, which moves values of order 1 by a few units of 2^-23 a layer.
    np.testing.assert_allclose(packed, np.concatenate([first, second], axis=1), rtol=0, atol=2e-6)
    summed = jax.tree.map(jnp.add, of_first, of_second)
    # Gradients add up 12 positions by 40 logits of order 1: 2^-23 times some tens.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), gradient, summed)


def test_without_a_separator_the_second_document_sees_the_first():
    decoder, _ = model(False, "none", separator=None)
    run = jax.jit(lambda tokens: decoder.apply({"params": PARAMS}, tokens))
    np.testing.assert_allclose(run(PACKED)[:, :6], run(FIRST), rtol=0, atol=2e-6)
    assert np.abs(run(PACKED)[:, 6:] - run(SECOND)).max() > 0.01


def test_a_separator_that_is_not_there_changes_nothing():
    logits = [jax.jit(model(False, "none", s)[0].apply)({"params": PARAMS}, PACKED) for s in (39, None)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=2e-6)


def test_on_a_mesh_each_row_keeps_its_own_documents():
    mesh = jax.make_mesh((2, 2, 2), (*ROWS, WIDTH), axis_types=(AxisType.Auto,) * 3)
    decoder, _ = model(False, "none")
    batch = jnp.concatenate([PACKED, PACKED[:, ::-1], jnp.roll(PACKED, 3, axis=1), jnp.roll(PACKED, 5, axis=1)])
    placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(ROWS)))
    sharded = jax.jit(on_mesh(mesh, decoder.apply))({"params": PARAMS}, placed)
    alone = jax.jit(decoder.apply)({"params": PARAMS}, batch)
    # Sums of 24 or 40 products of order 1, cut in two.
    np.testing.assert_allclose(sharded, alone, rtol=0, atol=4e-6)


def test_cudnn_is_given_the_mask_beside_causality(monkeypatch):
    """cuDNN runs on no CPU: what it would be called with is computed by XLA instead."""
    plain, seen = jax.nn.dot_product_attention, []

    def spy(q, k, v, *, mask, is_causal, implementation):
        seen.append((implementation, is_causal, mask.shape, mask.dtype))
        return plain(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    q, k = (jnp.asarray(np.random.default_rng(2).normal(size=(1, 12, heads, 8)), jnp.bfloat16) for heads in (4, 2))
    mask = document_positions(PACKED, SEPARATOR)[1]
    packed = causal_attention(q, k, k, "cudnn", mask)
    assert seen == [("cudnn", True, (1, 1, 12, 12), np.dtype(bool))]
    monkeypatch.undo()
    alone = causal_attention(q[:, :6], k[:, :6], k[:, :6], "xla")
    np.testing.assert_array_equal(packed[:, :6], alone)
