"""Grids, scales and quantizers: pure jax, no flax, no configuration, no files.

Shapes: kernels are `[*s k n]` (k input, n output, `*s` stacked layers); scales are `[*s g n]` with g groups of
k/g inputs each, `[*s 1 n]` per output channel, `[*s 1 1]` per tensor.
"""
