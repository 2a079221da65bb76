"""Drawing tokens: the same candidates as the numpy runtime, frequencies of the softmax, rows that know no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.generation.sampling import largest, sample
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


@pytest.mark.parametrize("values", [3, 40, None])
@pytest.mark.parametrize(("vocabulary", "k"), [(49_152 // 24, 20), (1000, 7), (97, 1), (64, 40), (33, 33)])
def test_largest_is_top_k_ties_included(vocabulary, k, values):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, vocabulary)) if values is None else rng.integers(0, values, (30, vocabulary))
    x = x.astype(np.float32)
    x[0] = 0.0
    x[1, 5:] = -np.inf
    for got, expected in zip(largest(jnp.asarray(x), k), jax.lax.top_k(x, k), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    order = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(largest(jnp.asarray(x), k)[1], order)


def test_largest_sorts_no_whole_row():
    """On a GPU a sort of all logits takes longer than the step of a small model."""
    text = jax.jit(largest, static_argnums=1).lower(jax.ShapeDtypeStruct((8, 49_152), jnp.float32), 50).as_text()
    sorted_shapes = [line for line in text.splitlines() if "top_k" in line or "sort" in line]
    assert any("8x1536xf32" in line for line in sorted_shapes)
    assert not any("8x49152xf32" in line for line in sorted_shapes)
