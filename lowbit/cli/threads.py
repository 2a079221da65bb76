"""How many threads numpy's matrix products take. To be decided before numpy is imported: it reads this once."""

import os
from collections.abc import MutableMapping

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Of OpenBLAS, OpenMP, MKL and Apple's Accelerate."""

DEFAULT = 1
"""A token at a time, products are matrix times vector: bound by memory, which one core nearly fills, while threads that
share busy cores wait for each other. On 2 cores at load 2: 27 to 41 tokens/s with one thread and 2 to 15 with two for
135 M parameters, 1100 to 1260 and 130 to 230 for 3 M."""


def set_threads(count: int | None, environment: MutableMapping[str, str] = os.environ) -> int | None:
    """Asks numpy's libraries for `count` threads.

    Args:
      count: None takes what the environment says already, and `DEFAULT` where it says nothing.
      environment: what to write to.

    Returns:
      The number asked for; None where the environment decides.
    """
    if count is None and any(name in environment for name in VARIABLES):
        return None
    wanted = DEFAULT if count is None else count
    for name in VARIABLES:
        environment[name] = str(wanted)
    return wanted
