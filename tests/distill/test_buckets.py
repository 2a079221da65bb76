"""The divergence over the kept tokens and one bucket, against float64, its slopes, and the whole divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.distill.buckets import bucket_distillation, keep
from lowbit.distill.losses import Outputs, distillation

B, T, D, V = 2, 4, 5, 13
RNG = np.random.default_rng(0)
HIDDEN, HEAD, WISE = RNG.standard_normal((B, T, D)), RNG.standard_normal((D, V)), 2 * RNG.standard_normal((B, T, V))
TARGETS = RNG.integers(0, V, (B, T))
# Float32 sums of at most B*T*V = 104 terms of size 1, against float64.
CLOSE = {"rtol": 104 * 2**-23, "atol": 104 * 2**-23}


def f32(x):
    return jnp.asarray(x, jnp.float32)


def kept_of(k, temperature=1.0):
    kept, lost = keep(f32(WISE.reshape(-1, V)), k, temperature)
    return jax.tree.map(lambda x: x.reshape(B, T, *x.shape[1:]), kept), lost


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def in_float64(hidden, head, weight, temperature, k):
    logits = hidden @ head
    log_p, log_q = log_softmax(logits / temperature), log_softmax(WISE / temperature)
    order = np.argsort(-log_q, axis=-1)
    apart = 0.0
    for log_p_row, log_q_row, row in zip(log_p.reshape(-1, V), log_q.reshape(-1, V), order.reshape(-1, V), strict=True):
        p, q = np.exp(log_p_row[row]), np.exp(log_q_row[row])
        p, q = np.append(p[:k], p[k:].sum()), np.append(q[:k], q[k:].sum())
        apart += (q * np.log(q / p)).sum() / (B * T)
    hard = -np.take_along_axis(log_softmax(logits), TARGETS[..., None], -1).mean()
    return (1 - weight) * hard + weight * temperature**2 * apart


@pytest.mark.parametrize(("weight", "temperature", "k"), [(1.0, 1.0, 3), (0.6, 2.0, 5)])
def test_value_and_gradient(weight, temperature, k):
    kept, _ = kept_of(k, temperature)

    def loss(hidden, head):
        return bucket_distillation(hidden, head, kept, jnp.asarray(TARGETS, jnp.int32), weight, temperature, 2)[0]

    value, (d_hidden, d_head) = jax.value_and_grad(loss, argnums=(0, 1))(f32(HIDDEN), f32(HEAD))
    np.testing.assert_allclose(value, in_float64(HIDDEN, HEAD, weight, temperature, k), **CLOSE)
    for got, of, at in (
        (d_hidden, lambda x: in_float64(x, HEAD, weight, temperature, k), HIDDEN),
        (d_head, lambda x: in_float64(HIDDEN, x, weight, temperature, k), HEAD),
    ):
        slopes = np.empty_like(at)
        for index in np.ndindex(at.shape):
            above, below = at.copy(), at.copy()
            above[index] += 1e-5
            below[index] -= 1e-5
            slopes[index] = (of(above) - of(below)) / 2e-5
        np.testing.assert_allclose(got, slopes, **CLOSE)


def test_more_tokens_bring_it_up_to_the_whole_divergence():
    # A teacher whose hidden states are its logits: the whole loss then sees the same distribution.
    teacher, targets = Outputs(f32(WISE), jnp.eye(V)), jnp.asarray(TARGETS, jnp.int32)
    whole = distillation(f32(HIDDEN), f32(HEAD), teacher, targets, 1.0, 1.0, 2)[0]
    values = [bucket_distillation(f32(HIDDEN), f32(HEAD), kept_of(k)[0], targets, 1.0, 1.0, 2)[0] for k in (1, 4, 12)]
    assert values == sorted(values)
    np.testing.assert_allclose(values[-1], whole, **CLOSE)  # a bucket of one token is that token


def test_what_the_truncation_takes_away():
    k = 4
    _, lost = kept_of(k)
    q = -np.sort(-np.exp(log_softmax(WISE.reshape(-1, V))), axis=-1)[:, k:]
    mass = q.sum(-1)
    np.testing.assert_allclose(lost.tail_mass, mass, **CLOSE)
    np.testing.assert_allclose(lost.tail_information, (q * np.log(q / mass[:, None] * (V - k))).sum(-1), **CLOSE)
