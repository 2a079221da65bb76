"""The only glue between quantizers and Flax: a transform of module classes."""

from lowbit.linen.transforms import quantize

__all__ = ["quantize"]
