import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.data import TokenWindows
from lowbit.errors import DataError
from lowbit.evals import evaluate

VOCAB = 11


def nll_table(seed=0):
    """A bigram model: nats[previous, next] in float32."""
    logits = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB))
    return (np.log(np.exp(logits).sum(1, keepdims=True)) - logits).astype(np.float32)


def bigram(table):
    return lambda batch: table[batch[:, :-1], batch[:, 1:]]


def tokens(n, t, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (n, t + 1)).astype(np.int32)


@given(n=st.integers(1, 13), t=st.integers(1, 6), batch_size=st.integers(1, 16))
@settings(deadline=None)
def test_any_batch_size_gives_the_mean_over_all_windows(n, t, batch_size):
    table, windows = nll_table(), tokens(n, t)
    shapes = set()

    def model(batch):
        shapes.add(batch.shape)
        return bigram(table)(batch)

    got = evaluate(model, windows, batch_size=batch_size)
    expected = table[windows[:, :-1], windows[:, 1:]].astype(np.float64)
    # Float64 sums of at most 78 terms, in another order: far below 1e-13 relative.
    assert math.isclose(got.nll, expected.mean(), rel_tol=1e-13)
    assert math.isclose(got.perplexity, math.exp(expected.mean()), rel_tol=1e-12)
    assert (got.tokens, got.windows) == (n * t, n)
    assert shapes == {(batch_size, t + 1)}  # one shape: a compiled model compiles once
    if n > 1:
        assert got.stderr == pytest.approx(expected.mean(1).std(ddof=1) / math.sqrt(n), rel=1e-9, abs=1e-12)
    else:
        assert got.stderr is None


def test_sums_over_windows_are_as_good_as_single_tokens():
    table, windows = nll_table(), tokens(7, 5)
    each = evaluate(bigram(table), windows, batch_size=4)
    summed = evaluate(lambda b: bigram(table)(b).astype(np.float64).sum(1), windows, batch_size=4)
    assert summed == each


def test_bits_per_byte_counts_the_bytes_of_predicted_tokens():
    table, windows = nll_table(), tokens(5, 3)
    lengths = np.arange(VOCAB, dtype=np.int64)
    got = evaluate(bigram(table), windows, batch_size=2, byte_lengths=lengths)
    size = int(windows[:, 1:].sum())  # token i stands for i bytes
    assert got.bytes == size
    assert got.bits_per_byte == pytest.approx(got.nll * got.tokens / math.log(2) / size, rel=1e-12)
    without = evaluate(bigram(table), windows, batch_size=2)
    assert without.bytes is without.bits_per_byte is None


def test_a_uniform_model_over_single_bytes_needs_eight_bits():
    windows = np.random.default_rng(0).integers(0, 256, (3, 9)).astype(np.int32)
    uniform = lambda b: np.full((len(b), 8), math.log(256))  # noqa: E731
    got = evaluate(uniform, windows, batch_size=2, byte_lengths=np.ones(256, np.int64))
    assert got.bits_per_byte == pytest.approx(8.0, rel=1e-12)
    assert got.perplexity == pytest.approx(256.0, rel=1e-12)


def test_first_takes_the_first_windows_only():
    table, windows = nll_table(), tokens(9, 4)
    assert evaluate(bigram(table), windows, batch_size=4, first=6) == evaluate(bigram(table), windows[:6], batch_size=4)


def test_windows_of_token_files_are_read_a_batch_at_a_time():
    stream = np.random.default_rng(0).integers(0, VOCAB, 50).astype(np.uint16)
    windows = TokenWindows((stream,), 4)
    table = nll_table()
    got = evaluate(bigram(table), windows, batch_size=5)
    used = stream[: len(windows) * 4 + 1].astype(np.int64)
    expected = table[used[:-1], used[1:]].astype(np.float64).mean()
    assert math.isclose(got.nll, expected, rel_tol=1e-13)


def test_sums_are_taken_in_float64():
    # 2**24 + 1 is not a float32: a float32 sum would stay at 2**24.
    nll = np.array([[2.0**24, 1.0, 1.0]], np.float32)
    got = evaluate(lambda b: nll, np.zeros((1, 4), np.int32), batch_size=1)
    assert got.nll * 3 == 2.0**24 + 2


def test_jax_arrays_of_low_precision_are_read():
    jnp = pytest.importorskip("jax.numpy")
    got = evaluate(lambda b: jnp.ones((2, 3), jnp.bfloat16), np.zeros((3, 4), np.int32), batch_size=2)
    assert (got.nll, got.stderr) == (1.0, 0.0)


def test_a_broken_model_shows_as_nan_and_a_hopeless_one_as_infinite_perplexity():
    windows = tokens(3, 2)
    assert math.isnan(evaluate(lambda b: np.full((2, 2), np.nan), windows, batch_size=2).nll)
    assert evaluate(lambda b: np.full((2, 2), 1e4), windows, batch_size=2).perplexity == math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "evaluation batch of 0 windows"),
        ({"batch_size": 2, "first": 4}, "the first 4 windows were asked for, and the text has 3"),
        ({"batch_size": 2, "first": 0}, "the first 0 windows"),
        ({"batch_size": 2, "byte_lengths": np.ones(2, np.int64)}, r"token \d+ has no byte length, there are 2"),
        ({"batch_size": 2, "byte_lengths": np.zeros(VOCAB, np.int64)}, "stand for no bytes"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        evaluate(bigram(nll_table()), tokens(3, 2), **settings)


def test_an_empty_text_and_windows_without_predictions_are_refused():
    with pytest.raises(DataError, match="the first 0 windows were asked for, and the text has 0"):
        evaluate(bigram(nll_table()), np.zeros((0, 5), np.int32), batch_size=2)
    with pytest.raises(DataError, match=r"windows of shape \[2, 1\]"):
        evaluate(bigram(nll_table()), np.zeros((2, 1), np.int32), batch_size=2)


def test_a_sum_over_the_batch_is_refused_because_it_would_count_padding():
    with pytest.raises(ValueError, match=r"nll_fn returned shape \[\] for tokens \[2, 4\]"):
        evaluate(lambda b: np.float32(3.0), np.zeros((3, 4), np.int32), batch_size=2)
