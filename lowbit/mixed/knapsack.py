"""One option for every item, at the least total loss under a budget: the multiple-choice knapsack, solved exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import AllocationError

HALVINGS = 100
"""Of the interval in which the price of a byte lies: as fine as float64 has it."""

SLACK = 1e-9
"""Share of a total by which sums in another order may differ, generously: no better choice is cut off for it."""


class Choice(NamedTuple):
    """One option an item.

    Attributes:
      options: index of the option of each item.
      cost: of all of them.
      loss: of all of them.
    """

    options: tuple[int, ...]
    cost: int
    loss: float


def choose(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> Choice:
    """Returns the options of least total loss whose total cost is at most the budget; of equal losses the cheapest.

    Dynamic programming over the items. A partial choice is kept if no other is at most as dear and at most as bad, and
    if it can still beat the best choice known, by the Lagrangian bound: for a price p >= 0 of a unit of cost, whatever
    the rest of the items cost,

      loss so far + p cost so far + sum over the rest of min (loss + p cost) - p budget <= loss of any completion

    The best p is that of the convex hull, found by halving; it leaves a handful of partial choices an item. Exact up to
    the rounding of sums of float64, and the same on every machine of IEEE arithmetic.

    Args:
      costs: of each option of each item.
      losses: the same for what the option loses; any finite numbers.
      budget: of all items together.

    Raises:
      AllocationError: even the cheapest options exceed the budget; the message says what they cost.
      ValueError: an item without options, or a loss that is not finite.
    """
    items = [(np.asarray(c, np.int64), np.asarray(v, np.float64)) for c, v in zip(costs, losses, strict=True)]
    if any(not c.size or c.shape != v.shape or not np.isfinite(v).all() for c, v in items):
        raise ValueError("each item needs options, each with a cost and a finite loss")
    cheapest = [int(c.min()) for c, _ in items]
    if sum(cheapest) > budget:
        raise AllocationError(
            f"a budget of {budget:,} does not hold the cheapest options, which cost {sum(cheapest):,}",
            f"give {sum(cheapest):,} or more, or cheaper options",
        )
    price, known = _best_price(items, budget)
    # What the items from i on cost at least, and what they add to the bound at least.
    rest_cost = np.append(np.cumsum(cheapest[::-1])[::-1], 0)
    rest_bound = np.append(np.cumsum([float((v + price * c).min()) for c, v in items][::-1])[::-1], 0.0)
    worst = known + SLACK * (abs(known) + abs(price) * budget + float(sum(np.abs(v).max() for _, v in items)))

    cost, loss = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for index, (own_cost, own_loss) in enumerate(items):
        all_cost = (cost[:, None] + own_cost[None]).ravel()
        all_loss = (loss[:, None] + own_loss[None]).ravel()
        bound = all_loss + price * (all_cost - budget) + rest_bound[index + 1]
        usable = np.flatnonzero((all_cost + rest_cost[index + 1] <= budget) & (bound <= worst))
        usable = usable[np.lexsort((all_loss[usable], all_cost[usable]))]
        least = np.minimum.accumulate(all_loss[usable])
        better = np.append(True, all_loss[usable][1:] < least[:-1])
        kept = usable[better]
        steps.append((kept // own_cost.size, kept % own_cost.size))
        cost, loss = all_cost[kept], all_loss[kept]
    place = int(np.argmin(loss))
    total_cost, total_loss = int(cost[place]), float(loss[place])
    options = []
    for parent, option in reversed(steps):
        options.append(int(option[place]))
        place = int(parent[place])
    return Choice(tuple(reversed(options)), total_cost, total_loss)


def _best_price(items: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], budget: int) -> tuple[float, float]:
    """Returns the price of a unit of cost with the best bound, nearly, and the loss of a choice within the budget."""

    def at(price: float) -> tuple[int, float]:
        """Cost and loss of the options that are best at a price; of equal ones the cheapest."""
        chosen = [int(np.lexsort((c, v + price * c))[0]) for c, v in items]
        pairs = list(zip(items, chosen, strict=True))
        return sum(int(c[j]) for (c, _), j in pairs), float(sum(v[j] for (_, v), j in pairs))

    cost, loss = at(0.0)
    if cost <= budget:
        return 0.0, loss
    low, high = 0.0, 1.0
    while at(high)[0] > budget:
        low, high = high, 2.0 * high
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if at(middle)[0] > budget:
            low = middle
        else:
            high = middle
    return high, at(high)[1]
