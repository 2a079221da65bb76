"""The knapsack: against every choice there is, and what it refuses."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import AllocationError
from lowbit.mixed.knapsack import choose

OPTIONS = st.tuples(st.integers(0, 12), st.floats(-1.0, 4.0, width=16))
ITEMS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def by_trying_all(costs, losses, budget):
    """(loss, cost) of the best choice: float sums in the order of the items, as the program has them."""
    best = None
    for chosen in itertools.product(*(range(len(c)) for c in costs)):
        cost = sum(c[j] for c, j in zip(costs, chosen, strict=True))
        loss = float(sum(np.float64(v[j]) for v, j in zip(losses, chosen, strict=True)))
        if cost <= budget and (best is None or (loss, cost) < best):
            best = (loss, cost)
    return best


@settings(max_examples=60, deadline=None)
@given(items=ITEMS, budget=st.integers(0, 60))
def test_no_choice_is_better(items, budget):
    costs = [[cost for cost, _ in options] for options in items]
    losses = [[loss for _, loss in options] for options in items]
    best = by_trying_all(costs, losses, budget)
    if best is None:
        least = sum(map(min, costs))
        with pytest.raises(AllocationError, match=f"which cost {least}"):
            choose(costs, losses, budget)
        return
    found = choose(costs, losses, budget)
    # Losses have 11 bits and small exponents: sums are exact, in any order.
    assert (found.loss, found.cost) == best
    assert sum(c[j] for c, j in zip(costs, found.options, strict=True)) == found.cost
    assert float(sum(v[j] for v, j in zip(losses, found.options, strict=True))) == found.loss


def test_a_large_one_is_within_the_bound_of_its_hull_and_always_the_same():
    """200 matrices of 5 widths: nothing can be tried, but the gap to the relaxed problem is less than one step."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([192, 512, 1536], 200)
    costs = [[int(size * bits) for bits in (1, 1.6, 2, 3, 4)] for size in sizes]
    losses = [list(weight * 4.0 ** -np.array([1, 1.58, 2, 3, 4])) for weight in rng.lognormal(0, 2, 200)]
    budget = int(2.3 * sizes.sum())
    found = choose(costs, losses, budget)
    assert found == choose(costs, losses, budget)
    assert found.cost <= budget
    bound = max(
        sum(min(v + p * c for c, v in zip(cs, vs, strict=True)) for cs, vs in zip(costs, losses, strict=True))
        - p * budget
        for p in np.geomspace(1e-7, 1.0, 200)
    )
    largest_step = max(max(vs) - min(vs) for vs in losses)
    assert bound <= found.loss * (1 + 1e-12)
    assert found.loss - bound < 0.01 * largest_step


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="each item needs options, each with a cost and a finite loss"):
        choose([[1, 2]], [[0.0, float("nan")]], 3)
