"""Activation quantizers: what shares a scale, what equals the runtimes, and where gradients pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.kernels import reference
from lowbit.numerics.activations import Range, dynamic, integers, range_of, range_state, static, widest
from lowbit.numerics.quantizers import rtn, transposed

RNG = np.random.default_rng(0)


def tokens(*shape):
    return jnp.asarray(RNG.standard_t(4, size=shape or (2, 7, 24)).astype(np.float32))


def decoded(i):
    """What the integers stand for, in float32 as `QTensor.decode` computes it."""
    shifted = i.numbers.astype(jnp.float32)
    if i.zero is not None:
        shifted = shifted - i.zero.astype(jnp.float32)
    return shifted * i.scale.astype(jnp.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["token", "channel", "tensor"])
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_what_training_computes_with(bits, granularity, symmetric):
    q, x = dynamic(bits, granularity, symmetric), tokens()
    state = q.init(x)
    i = integers(q.encode(x, state))
    assert i.numbers.dtype == jnp.int8
    assert i.scale.shape == {"token": (2, 7, 1), "channel": (2, 1, 24), "tensor": (2, 1, 1)}[granularity]
    assert (i.zero is None) == symmetric
    np.testing.assert_array_equal(decoded(i), q.fake(x, state))
    # All levels are in reach of some number, and no error is above half a step.
    assert jnp.max(jnp.abs(decoded(i) - x) / i.scale) <= 0.5 + 2**-16


def test_eight_bits_a_token_are_those_of_the_integer_runtimes():
    x = np.array(tokens(200, 24) * 10 ** RNG.integers(-6, 6, (200, 1)).astype(np.float32))
    x[0] = 0
    q, expected = dynamic(8), reference.quantize_activations(x)
    i = integers(q.encode(jnp.asarray(x), q.init(jnp.asarray(x))))
    np.testing.assert_array_equal(i.numbers, expected.codes)
    np.testing.assert_array_equal(i.scale, expected.scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_float16_scales_give_the_codes_of_rounding_to_nearest(symmetric):
    x = tokens(5, 3, 16)
    ours, theirs = dynamic(4, symmetric=symmetric, scale_dtype=jnp.float16), transposed(rtn(4, symmetric=symmetric))
    a, b = (q.encode(x, q.init(x)) for q in (ours, theirs))
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.decode(), b.decode())


@pytest.mark.parametrize("make", [dynamic, functools.partial(dynamic, symmetric=False)])
def test_a_token_does_not_know_of_others(make):
    q, x = make(4), tokens()
    changed = x.at[:, 3].multiply(50.0)
    before, after = (q.fake(y, q.init(y)) for y in (x, changed))
    kept = np.arange(7) != 3
    np.testing.assert_array_equal(before[:, kept], after[:, kept])


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_stays_zero_and_a_token_of_zeros_is_no_nan(symmetric):
    q = dynamic(4, symmetric=symmetric)
    x = jnp.concatenate([tokens(3, 8), jnp.zeros((1, 8))]).at[:, 0].set(0.0)
    x_hat, vjp = jax.vjp(lambda x: q.fake(x, q.init(x)), x)
    np.testing.assert_array_equal(x_hat[:, 0], 0.0)
    np.testing.assert_array_equal(x_hat[3], 0.0)
    np.testing.assert_array_equal(vjp(jnp.ones_like(x))[0], 1.0)  # nothing is clipped, so all of it passes


def test_a_static_range_is_that_of_all_batches_and_clips_what_is_outside():
    batches = [tokens(5, 8), 3 * tokens(5, 8)]
    found = functools.reduce(widest, (range_of(x, "tensor") for x in batches))
    everything = jnp.concatenate(batches)
    np.testing.assert_array_equal(found.low[0, 0], jnp.min(everything))
    np.testing.assert_array_equal(found.high[0, 0], jnp.max(everything))
    for symmetric in (True, False):
        q = static(8, symmetric=symmetric)
        state = range_state(found, 8, symmetric)
        wide = jnp.asarray([[2.0, 1.001, 1.0, 0.5]], jnp.float32) * (
            jnp.maximum(-found.low, found.high) if symmetric else found.high
        )
        x_hat, vjp = jax.vjp(lambda x, q=q, s=state: q.fake(x, s), wide)
        (grad,) = vjp(jnp.ones_like(wide))
        top = 127 if symmetric else 255 - state["zero"]
        np.testing.assert_array_equal(grad[0], wide[0] <= (top * state["scale"])[0])
        assert grad[0, 0] == 0
        assert grad[0, 3] == 1
        np.testing.assert_array_equal(x_hat[0, 0], (top * state["scale"])[0, 0])


def test_a_static_range_a_channel_follows_its_channel():
    x = tokens(64, 8) * jnp.asarray(10.0 ** np.arange(8), jnp.float32)[None]
    whole, each = static(4), static(4, "channel")

    def error(q):
        return jnp.mean(jnp.abs(q.fake(x, q.init(x)) - x)[:, 0])

    assert each.init(x)["scale"].shape == (1, 8)
    assert error(each) < error(whole)


def test_layers_with_ranges_of_their_own_go_through_a_scan():
    q, x = static(8, symmetric=False), tokens(3, 5, 8) * jnp.asarray([1.0, 2.0, 3.0], jnp.float32)[:, None, None]
    state = q.init(x)
    assert state["scale"].shape == (3, 1, 1)
    _, scanned = jax.lax.scan(lambda c, layer: (c, q.fake(*layer)), 0, (x, state))
    np.testing.assert_array_equal(scanned, q.fake(x, state))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dynamic(9), "activations cannot be rounded to 9 bits\n  -> choose an integer from 2 to 8"),
        (lambda: dynamic(1), "cannot be rounded to 1 bits"),
        (lambda: dynamic(8, "head"), "activations have no granularity 'head'\n  -> "),
        (lambda: dynamic(8, variant="refrence"), "unknown variant 'refrence' of activations\n  -> did you mean"),
        (lambda: dynamic(8, scale_dtype=jnp.int8), "a scale cannot be stored as 'int8'"),
        (lambda: dynamic(8, variant="reference", scale_dtype=jnp.float16), "LLM-QAT's code has float32 scales"),
        (lambda: static(8, "token"), "a static range for each token is no range\n  -> choose 'tensor' or 'channel'"),
        (lambda: static(8).fake(tokens(2, 4), {}), "a static range was never calibrated\n  -> calibrate it"),
        (lambda: static(8).encode(tokens(2, 4), {}), "a static range was never calibrated"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(QuantizerError, match=message):
        make()


def test_an_empty_range_rounds_everything_to_zero():
    nothing = Range(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    for symmetric in (True, False):
        q = static(8, symmetric=symmetric)
        np.testing.assert_array_equal(q.fake(tokens(2, 4), range_state(nothing, 8, symmetric)), 0.0)
