"""Is one model better than another, or luckier? Tests on what both did with the same windows or items."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import DataError

RESAMPLES = 10_000
LEVEL = 0.95
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models over the same samples.

    Attributes:
      difference: mean of first minus second.
      stderr: its standard error over samples.
      low: lower end of the 95 % interval, percentiles of the paired bootstrap.
      high: upper end.
      p_value: of the two-sided sign-flip permutation test, that models which are alike differ as much; at least
        1 / (resamples + 1).
      wins: samples where the first is larger.
      losses: samples where the second is.
      samples: how many there are.
    """

    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    wins: int
    losses: int
    samples: int


def paired_test(
    first: NDArray[np.floating], second: NDArray[np.floating], *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedTest:
    """Compares two models by what they made of the same samples, whose difficulty cancels out.

    The permutation test (Fisher, The Design of Experiments, 1935) flips the sign of each sample's difference at random;
    equal samples stay as they are. The interval resamples samples with replacement (Efron, 1979). Windows of one text
    are taken as independent, which long windows nearly are.

    Args:
      first: f[n], a figure a window or an item.
      second: f[n], the other model's, in the same order.
      resamples: of either kind.
      seed: of the draws; equal seeds give equal results.

    Raises:
      DataError: fewer than two samples, different numbers of them, or samples that are not finite.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise DataError(
            f"a paired test of samples {list(first.shape)} and {list(second.shape)}",
            "give both models the same windows or items, at least two",
        )
    differences = first.astype(np.float64) - second.astype(np.float64)
    if not np.isfinite(differences).all():
        raise DataError("samples that are not finite", "look at the models one by one: one of them is broken")
    n = len(differences)
    mean = float(differences.mean())
    rng = np.random.default_rng(seed)
    flipped, resampled = [], []
    at_once = max(1, _VALUES_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        signs = rng.integers(0, 2, (count, n), np.int8) * 2.0 - 1.0
        flipped.append(signs @ differences / n)
        resampled.append(differences[rng.integers(0, n, (count, n))].mean(axis=1))
    # Equal sums in another order may differ in their last bits; they count as being as large.
    as_large = np.abs(np.concatenate(flipped)) >= abs(mean) * (1 - 1e-12) - 1e-300
    low, high = np.quantile(np.concatenate(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return PairedTest(
        difference=mean,
        stderr=float(differences.std(ddof=1)) / n**0.5,
        low=float(low),
        high=float(high),
        p_value=(1 + int(as_large.sum())) / (1 + resamples),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        samples=n,
    )
