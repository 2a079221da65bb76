"""Drawing tokens: the same candidates as the numpy runtime, frequencies of the softmax, rows that know no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.generation.sampling import sample
from lowbit.kernels import Sampling

LOGITS = np.array([0.1, 2.0, -1.0, 1.5, 2.0, -3.0], np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum()


def draws(sampling, count=3000):
    rows = jnp.asarray(np.tile(LOGITS, (count, 1)))
    return np.asarray(
        jax.jit(sample, static_argnums=1)(rows, sampling, jnp.arange(count, dtype=jnp.uint32), jnp.int32(0))
    )


def test_greedy_takes_the_first_of_the_likeliest():
    assert set(draws(Sampling(), 3)) == {1}


@pytest.mark.parametrize(
    ("sampling", "candidates"),
    [
        (Sampling(1.0), {0, 1, 2, 3, 4, 5}),
        (Sampling(1.0, top_k=3), {1, 3, 4}),
        (Sampling(1.0, top_k=99), {0, 1, 2, 3, 4, 5}),
        (Sampling(1.0, top_p=0.5), {1, 4}),
        (Sampling(1.0, top_p=1e-6), {1}),
        (Sampling(1.0, top_k=2, top_p=0.9), {1, 4}),
        (Sampling(0.01, top_k=3), {1, 4}),
    ],
)
def test_candidates_are_those_of_top_k_and_top_p(sampling, candidates):
    assert set(draws(sampling).tolist()) == candidates


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, top_k=3)])
def test_frequencies_are_probabilities(sampling):
    kept = np.argsort(-P, kind="stable")[: sampling.top_k]
    expected = np.zeros_like(P)
    expected[kept] = P[kept] / P[kept].sum()
    counts = np.bincount(draws(sampling), minlength=6) / 3000
    assert np.abs(counts - expected).max() < 5 * 0.5 / 3000**0.5  # five standard errors of a share, at most


def test_a_row_depends_on_its_own_seed_and_number():
    rows = jax.random.normal(jax.random.key(0), (4, 50), jnp.float32)
    seeds = jnp.asarray([7, 8, 7, 9], jnp.uint32)
    together = sample(rows, Sampling(1.0), seeds, jnp.int32(5))
    for row in range(4):
        alone = sample(rows[row : row + 1], Sampling(1.0), seeds[row : row + 1], jnp.int32(5))
        assert alone[0] == together[row]
    flat = jnp.zeros((1, 1000), jnp.float32)
    drawn = {int(sample(flat, Sampling(1.0), seeds[:1], jnp.int32(number))[0]) for number in range(5)}
    assert len(drawn) == 5
