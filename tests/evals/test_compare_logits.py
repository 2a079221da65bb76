import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import DataError
from lowbit.evals import compare_logits, compare_models


def logits(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def kl(p, q):
    """The definition, in float64 and without any trick."""
    p, q = (np.exp(x.astype(np.float64)) for x in (p, q))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum(-1)


@given(rows=st.integers(1, 7), t=st.integers(1, 5), chunk=st.integers(1, 80))
@settings(deadline=None)
def test_any_chunk_size_gives_the_definition(rows, t, chunk):
    p, q = logits((rows, t, 9), 0), logits((rows, t, 9), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowbit.evals.compare._CHUNK_VALUES", chunk)
        got = compare_logits(p, q)
    # A few hundred float64 operations on numbers near one.
    assert math.isclose(got.kl, kl(p, q).mean(), rel_tol=1e-12)
    assert got.top1 == (p.argmax(-1) == q.argmax(-1)).mean()
    assert got.max_abs == np.abs(p.astype(np.float64) - q).max()
    assert got.positions == rows * t


def test_equal_logits_agree_exactly_and_a_shift_of_all_logits_is_no_difference():
    p = logits((4, 9), 0)
    same = compare_logits(p, p)
    assert (same.kl, same.top1, same.max_abs) == (0.0, 1.0, 0.0)
    shifted = compare_logits(p.astype(np.float64), p.astype(np.float64) + 8.0)
    assert shifted.top1 == 1.0
    assert shifted.kl == pytest.approx(0.0, abs=1e-14)  # the shift rounds logits by 2**-50


def test_divergence_is_from_the_reference():
    p, q = logits((4, 9), 0), logits((4, 9), 1)
    assert compare_logits(p, q).kl != pytest.approx(compare_logits(q, p).kl, rel=1e-3)


def test_large_logits_do_not_overflow():
    got = compare_logits(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))
    assert got.kl == pytest.approx(1e4, rel=1e-12)
    assert got.top1 == 0.0


def test_a_broken_model_does_not_look_like_a_perfect_one():
    got = compare_logits(np.zeros((2, 3)), np.array([[0.0, np.nan, 0.0], [0.0, 0.0, 0.0]]))
    assert math.isnan(got.kl)
    assert math.isnan(got.max_abs)


def test_models_are_compared_over_windows_without_the_padding():
    table_p, table_q = logits((6, 6), 0), logits((6, 6), 1)
    windows = np.random.default_rng(2).integers(0, 6, (5, 4)).astype(np.int32)
    got = compare_models(lambda x: table_p[x], lambda x: table_q[x], windows, batch_size=3)
    expected = compare_logits(table_p[windows[:, :-1]], table_q[windows[:, :-1]])
    assert got.positions == 15
    assert got.top1 == expected.top1
    assert math.isclose(got.kl, expected.kl, rel_tol=1e-12)
    first = compare_models(lambda x: table_p[x], lambda x: table_q[x], windows, batch_size=3, first=2)
    assert first.positions == 6


def test_jax_logits_of_low_precision_are_read():
    jnp = pytest.importorskip("jax.numpy")
    got = compare_logits(jnp.zeros((2, 3, 4), jnp.bfloat16), jnp.ones((2, 3, 4), jnp.bfloat16))
    assert (got.kl, got.max_abs, got.positions) == (0.0, 1.0, 6)


@pytest.mark.parametrize(("p", "q"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((0, 3), (0, 3)), ((), ())])
def test_logits_of_different_or_no_shape_are_refused(p, q):
    with pytest.raises(ValueError, match=r"both must be the same \[\.\.\. V\]"):
        compare_logits(np.zeros(p), np.zeros(q))


def test_more_windows_than_there_are_is_refused():
    with pytest.raises(DataError, match="the first 9 windows"):
        compare_models(lambda x: x, lambda x: x, np.zeros((2, 3), np.int32), batch_size=2, first=9)
