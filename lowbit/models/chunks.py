"""Cutting sequences into pieces: how losses visit positions so that logits [b t V] are never held whole."""

import jax


def rows(x: jax.Array) -> jax.Array:
    """[b t n] -> [b*t n]: products over two axes at once are slow on a CPU."""
    return x.reshape(-1, x.shape[-1])


def cut(x: jax.Array, chunks: int) -> jax.Array:
    """[b t ...] -> [chunks b t/chunks ...]: rows, which the mesh shards, stay whole.

    Raises:
      ValueError: `chunks` does not divide t.
    """
    b, t = x.shape[:2]
    if chunks < 1 or t % chunks:
        raise ValueError(f"{chunks} chunks do not divide {t} positions")
    return x.reshape(b, chunks, t // chunks, *x.shape[2:]).swapaxes(0, 1)


def join(x: jax.Array) -> jax.Array:
    """[chunks b t/chunks ...] -> [b t ...]: undoes `cut`."""
    chunks, b, t = x.shape[:3]
    return x.swapaxes(0, 1).reshape(b, chunks * t, *x.shape[3:])
