"""What is left out, and why; how near texts must be to count as one."""

import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.synthesis.duplicates import Duplicates, ngrams, signature
from lowbit.synthesis.filters import Filters, compression, repeated_share

RNG = np.random.default_rng(0)
TEXT = RNG.integers(0, 40_000, 200, np.int32)


def test_repeated_share_counts_ngrams_that_were_there_before():
    assert repeated_share(np.arange(10, dtype=np.int32)) == 0
    assert repeated_share(np.array([1, 2, 3], np.int32)) == 0  # no 4-gram
    assert repeated_share(np.full(12, 7, np.int32)) == pytest.approx(8 / 9)
    twice = np.tile(np.arange(8, dtype=np.int32), 2)
    assert repeated_share(twice) == pytest.approx(1 - 8 / 13)  # 5 in the first, 3 across, 5 again


def test_ngrams_are_equal_where_tokens_are():
    a = ngrams(np.array([5, 6, 7, 8, 5, 6, 7], np.int32), 3)
    assert a[0] == a[4]
    assert len(set(a.tolist())) == 4
    assert ngrams(np.array([6, 5, 7], np.int32), 3)[0] != a[0]  # order counts
    assert len(ngrams(np.array([1], np.int32), 3)) == 1


def test_compression_sees_what_tokens_hide():
    prose = b"It was a dark night, and the ship lay in the bay while the men spoke of home and of the sea."
    assert compression(prose) < 2
    assert compression(prose * 40) > 20
    assert compression(b"") == 0


def near(text, share):
    """The text with some tokens replaced, so that about `share` of all 5-grams of both are in both."""
    changed = text.copy()
    # Each replaced token takes 5 of n shingles: J = (n - 5 c) / (n + 5 c).
    count = round(len(text) * (1 - share) / (1 + share) / 5)
    changed[np.linspace(5, len(text) - 6, count).astype(int)] = 50_000
    return changed


def test_signatures_estimate_the_share_of_common_shingles():
    for share in (0.3, 0.6, 0.9):
        found = []
        for _ in range(30):
            text = RNG.integers(0, 40_000, 500, np.int32)
            other = near(text, share)
            a, b = set(ngrams(text, 5).tolist()), set(ngrams(other, 5).tolist())
            found.append(np.mean(signature(text) == signature(other)) - len(a & b) / len(a | b))
        # The mean of 30 estimates, each of deviation (share (1 - share) / 32) ** 0.5 or less: four deviations.
        assert abs(np.mean(found)) < 4 * (0.25 / 32 / 30) ** 0.5
    assert np.mean(signature(TEXT) == signature(RNG.permutation(TEXT))) == 0


def test_equal_and_nearly_equal_texts_are_there_already():
    seen = Duplicates(0.8)
    assert seen.add(TEXT) is None
    assert seen.add(TEXT) == "duplicate"
    assert seen.add(near(TEXT, 0.95)) == "near_duplicate"
    assert seen.add(near(TEXT, 0.3)) is None
    assert seen.add(RNG.permutation(TEXT)) is None
    assert seen.add(np.array([1, 2], np.int32)) is None  # shorter than a shingle
    assert seen.add(np.array([1, 2], np.int32)) == "duplicate"


def test_nearly_all_near_duplicates_are_found_and_unlike_texts_are_not():
    found = {0.95: 0, 0.3: 0}
    for share in found:
        for _ in range(50):
            text = RNG.integers(0, 40_000, 400, np.int32)
            seen = Duplicates(0.8)
            seen.add(text)
            found[share] += seen.add(near(text, share)) is not None
    assert found[0.95] >= 47  # bands find all; that the estimate falls below 0.8 has a chance of 1 in 2,000
    assert found[0.3] == 0  # six deviations from 0.8


def test_the_first_reason_that_applies_is_named():
    filters = Filters(min_tokens=10)
    seen = Duplicates(filters.near_duplicates)
    prose = bytes(RNG.integers(32, 127, 500, np.uint8))
    assert filters.reason(TEXT[:9], prose, seen) == "short"
    assert filters.reason(np.tile(TEXT[:8], 20), b"ab" * 999, seen) == "repeated"
    assert filters.reason(TEXT, b"ab" * 999, seen) == "compressible"
    assert filters.reason(TEXT, prose, seen) is None
    assert filters.reason(TEXT, prose, seen) == "duplicate"
    assert filters.reason(near(TEXT, 0.97), prose, seen) == "near_duplicate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_tokens": 0}, "min_tokens=0 is out of range\n  -> give 1 or more"),
        ({"max_repeated": 1.5}, r"max_repeated=1\.5 is out of range"),
        ({"max_compression": float("inf")}, "max_compression=inf is out of range"),
        ({"near_duplicates": 0.0}, r"near_duplicates=0\.0 is out of range\n  -> give a share above 0, up to 1"),
    ],
)
def test_thresholds_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Filters(**options)
