import itertools

import numpy as np
import pytest

from lowbit.errors import DataError
from lowbit.evals import paired_test


def exact_p(differences):
    """Over all sign patterns."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    return (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()


def test_p_value_is_that_of_all_sign_patterns():
    differences = np.random.default_rng(0).normal(0.4, 1.0, 10)
    got = paired_test(differences, np.zeros(10), resamples=20_000)
    expected = exact_p(differences)
    # Five standard deviations of a share of 20,000 draws.
    assert abs(got.p_value - expected) < 5 * (expected * (1 - expected) / 20_000) ** 0.5 + 1e-4
    assert got.difference == pytest.approx(differences.mean(), rel=1e-12)
    assert got.stderr == pytest.approx(differences.std(ddof=1) / 10**0.5, rel=1e-12)


def test_items_that_both_have_alike_say_nothing():
    first = np.array([1.0, 1.0, 0.0, 1.0] + [1.0] * 50)
    second = np.array([0.0, 0.0, 1.0, 0.0] + [1.0] * 50)
    got = paired_test(first, second, resamples=20_000)
    assert (got.wins, got.losses, got.samples) == (3, 1, 54)
    # The sign test of 3 : 1, two-sided: 10 of 16 patterns are as uneven.
    assert got.p_value == pytest.approx(10 / 16, abs=5 * (0.625 * 0.375 / 20_000) ** 0.5)


def test_interval_is_that_of_the_normal_law_for_many_samples():
    differences = np.random.default_rng(1).normal(0.1, 1.0, 2000)
    got = paired_test(differences, np.zeros(2000))
    # Percentiles of 10,000 bootstrap means have an error of about 3 % of a standard error; five times that is allowed.
    assert (got.low, got.high) == pytest.approx(
        (got.difference - 1.96 * got.stderr, got.difference + 1.96 * got.stderr), abs=0.15 * got.stderr
    )
    assert got == paired_test(differences, np.zeros(2000))


def test_equal_models_are_not_different_and_p_is_never_zero():
    same = np.linspace(0, 1, 30)
    assert paired_test(same, same).p_value == 1.0
    assert paired_test(same + 1, same, resamples=999).p_value == pytest.approx(1e-3)


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(2)
    alarms = sum(paired_test(*rng.normal(size=(2, 25)), resamples=199).p_value <= 0.05 for _ in range(400))
    assert alarms <= 20 + 5 * (400 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros(3), np.zeros(4), r"samples \[3\] and \[4\]"),
        (np.zeros(1), np.zeros(1), "at least two"),
        (np.array([0.0, np.nan]), np.zeros(2), "not finite"),
    ],
)
def test_samples_that_are_no_pairs_are_refused(first, second, message):
    with pytest.raises(DataError, match=message):
        paired_test(first, second)
