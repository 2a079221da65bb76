"""Labels that stand beside what they name, instead of a legend."""

from collections.abc import Sequence

import numpy as np


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Moves positions apart until neighbours are at least `gap` from each other, as little as possible.

    Least squares under order constraints: after taking `i * gap` off the i-th smallest, this is isotonic
    regression, solved by pooling neighbours that violate the order.

    Returns:
      The new positions, in the order of the old ones.
    """
    order = np.argsort(np.asarray(positions, dtype=np.float64), kind="stable")
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = float(positions[index]) - rank * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean = (mean * size + before * count) / (size + count)
            size += count
        pools.append((mean, size))
    placed = np.repeat([mean for mean, _ in pools], [size for _, size in pools])
    result = np.empty(len(order), dtype=np.float64)
    result[order] = placed + gap * np.arange(len(order))
    return [float(position) for position in result]
