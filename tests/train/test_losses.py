"""Chunked cross entropy against the plain one, in value, gradient and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.train.losses import cross_entropy, token_nll

B, T, D, V = 2, 12, 16, 53
EPS = float(jnp.finfo(jnp.float32).eps)


def example(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    head = jnp.asarray(rng.normal(size=(D, V)) / D**0.5, dtype)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    return hidden, head, targets


def plain(hidden, head, targets):
    log_probs = jax.nn.log_softmax(jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_probs, targets[..., None], axis=-1))


@pytest.mark.parametrize("chunks", [1, 3, 4, 12])
def test_value_and_gradient_equal_plain_cross_entropy(chunks):
    hidden, head, targets = example()
    value, grads = jax.value_and_grad(cross_entropy, (0, 1))(hidden, head, targets, chunks)
    wanted, wanted_grads = jax.value_and_grad(plain, (0, 1))(hidden, head, targets)
    # Each log-probability is a sum over V terms below 1: a relative error of at most V eps either way.
    np.testing.assert_allclose(value, wanted, rtol=2 * V * EPS)
    for got, want, terms in zip(grads, wanted_grads, (V, B * T), strict=True):
        # A sum of `terms` products, each itself off by at most V eps of the largest.
        np.testing.assert_allclose(got, want, rtol=0, atol=2 * (V + terms) * EPS * float(jnp.abs(want).max()))


def test_token_nll_is_what_the_mean_is_over():
    hidden, head, targets = example(1)
    nll = token_nll(hidden, head, targets, 4)
    assert nll.shape == (B, T)
    np.testing.assert_allclose(jnp.mean(nll), plain(hidden, head, targets), rtol=2 * V * EPS)
    single = plain(hidden[1:, 5:6], head, targets[1:, 5:6])
    np.testing.assert_allclose(nll[1, 5], single, rtol=2 * V * EPS)


def test_bf16_inputs_are_summed_in_float32():
    hidden, head, targets = example(2, jnp.bfloat16)
    value, (d_hidden, d_head) = jax.value_and_grad(cross_entropy, (0, 1))(hidden, head, targets, 4)
    assert value.dtype == jnp.float32
    assert d_hidden.dtype == d_head.dtype == jnp.bfloat16
    wide = hidden.astype(jnp.float32), head.astype(jnp.float32)
    wanted, wanted_grads = jax.value_and_grad(plain, (0, 1))(*wide, targets)
    # Products of bf16 numbers are exact in float32.
    np.testing.assert_allclose(value, wanted, rtol=2 * V * EPS)
    for got, want in zip((d_hidden, d_head), wanted_grads, strict=True):
        # d logits and the result are rounded once each: half a bf16 ulp, 2^-9, of sum |terms| <= norm x norm.
        largest = float(jnp.linalg.norm(wide[0]) * jnp.linalg.norm(wide[1])) / (B * T)
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=2**-9 * largest)


def test_the_logits_of_the_whole_batch_never_exist():
    t, v = 64, 1000
    hidden = jax.ShapeDtypeStruct((2, t, 8), jnp.float32)
    head = jax.ShapeDtypeStruct((8, v), jnp.float32)
    targets = jax.ShapeDtypeStruct((2, t), jnp.int32)

    def scratch(chunks):
        step = jax.jit(jax.grad(lambda h, w, y: cross_entropy(h, w, y, chunks), (0, 1)))
        return step.lower(hidden, head, targets).compile().memory_analysis().temp_size_in_bytes

    assert scratch(1) >= 2 * t * v * 4
    assert scratch(16) < 2 * t * v * 4


def test_is_vmappable_and_jits_once():
    hidden, head, targets = example(3)
    both = jnp.stack([head, 2 * head])
    values = jax.vmap(lambda w: cross_entropy(hidden, w, targets, 4))(both)
    np.testing.assert_allclose(values[1], plain(hidden, 2 * head, targets), rtol=2 * V * EPS)


def test_chunks_that_do_not_divide_are_refused():
    hidden, head, targets = example()
    with pytest.raises(ValueError, match="5 chunks do not divide 12 positions"):
        cross_entropy(hidden, head, targets, 5)
