"""The only glue between quantizers and Flax: class transforms, and dot_generals for activations."""

from lowbit.linen.transforms import quantize

__all__ = ["quantize"]
