"""Sampling: the tokens that may be drawn, and how often."""

import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.kernels import Sampling
from lowbit.kernels.sampling import sample

# Probabilities 0.4 0.3 0.2 0.1, out of order.
LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(sampling: Sampling, count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.bincount([sample(LOGITS, sampling, rng) for _ in range(count)], minlength=4) / count


def test_no_temperature_takes_the_likeliest() -> None:
    assert draws(Sampling(), 10).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(temperature=1.0, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=1.0, top_p=0.65), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(temperature=1.0, top_p=1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=1.0, top_p=1e-9), [0, 1, 0, 0]),
        # Of the two that top_k leaves, 4/7 and 3/7, the first alone has a half.
        (Sampling(temperature=1.0, top_k=2, top_p=0.5), [0, 1, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_should(sampling: Sampling, expected: list[float]) -> None:
    # Four standard deviations of a share of 4,000 draws: 4 sqrt(1/4 / 4000) = 0.032.
    got = draws(sampling)
    np.testing.assert_allclose(got, expected, atol=0.032)
    assert ((got > 0) == (np.array(expected) > 0)).all()


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert draws(Sampling(temperature=1e-300), 10).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is out of range\n  -> give 0"),
        ({"temperature": float("nan")}, "temperature nan is out of range"),
        ({"temperature": float("inf")}, "temperature inf is out of range"),
        ({"top_k": 0}, "top_k 0 is out of range\n  -> give 1 or more"),
        ({"top_p": 0.0}, "top_p 0.0 is out of range\n  -> give a number above 0"),
        ({"top_p": 1.5}, "top_p 1.5 is out of range"),
    ],
)
def test_impossible_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**setting)
