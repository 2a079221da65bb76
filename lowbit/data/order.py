"""The order in which an epoch visits its windows: a permutation that can be asked for any of its places.

Up to 2^22 windows (4 G tokens in windows of 1,024) it is numpy's own shuffle, an array of at most 32 MiB. Beyond, it is
computed place by place and takes no memory, whatever the number of windows: a Feistel network permutes the
smallest domain 2^2h that holds them, and a place whose image lies outside is sent through it again until it lies
inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). As n > 2^2h / 4, fewer than
four rounds are expected.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SHUFFLED_WHOLE = 1 << 22
_ROUNDS = 6  # four make a Feistel network of random functions pseudorandom (Luby and Rackoff, 1988)
# The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every bit of its result depends on all bits.
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def epoch_order(seed: int, epoch: int, n: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns which of n windows stand at some places of an epoch's order.

    Args:
      seed: of the run.
      epoch: each has another order.
      n: number of windows.
      places: `[p]`, each from 0 to n - 1.
    """
    if n <= SHUFFLED_WHOLE:
        return _shuffled(seed + epoch, n)[places]
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    return feistel(np.asarray(keys, np.uint64), n, places)


def endless_order(seed: int, first: int, n: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns which of n windows stand at some places of epochs that follow each other without a gap.

    Args:
      seed: of the run.
      first: the epoch that place 0 is in.
      n: number of windows.
      places: `[p]`, ascending.
    """
    order = np.empty(len(places), np.int64)
    for epoch in range(int(places[0]) // n, int(places[-1]) // n + 1):
        inside = places // n == epoch
        order[inside] = epoch_order(seed, first + epoch, n, places[inside] % n)
    return order


def feistel(keys: NDArray[np.uint64], n: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the images `[p]` of places under the permutation of 0 to n - 1 that the keys choose, one a round."""
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    images = _network(keys, half, places.astype(np.uint64))
    while (outside := images >= n).any():
        images[outside] = _network(keys, half, images[outside])
    return images.astype(np.int64)


def _network(keys: NDArray[np.uint64], half: np.uint64, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> _SHIFTS[0])) * _MULTIPLIERS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return x ^ (x >> _SHIFTS[2])


@lru_cache(maxsize=2)  # a batch may begin in one epoch and end in the next
def _shuffled(seed: int, n: int) -> NDArray[np.int64]:
    order = np.random.default_rng(seed).permutation(n)
    order.flags.writeable = False  # the cache hands the same array to every caller
    return order
