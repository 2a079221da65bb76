"""Pretrained Transformer language models at 1 to 4 bits per weight, and on to something that runs.

Importing the package loads neither jax nor numpy: an engineer who only runs a packed model
(`lowbit.formats`, `lowbit.kernels`) never pays for the training stack.
"""

from lowbit.version import __version__

__all__ = ["__version__"]
