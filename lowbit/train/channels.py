"""EfQAT: of each matrix the output channels that matter most learn, chosen anew now and then (arXiv 2411.11038)."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from lowbit.train.optimizers import path_string
from lowbit.tree import flatten, unflatten

Importances = Sequence[Float[Array, "..."]]
"""Of the output channels of each parameter, `[*s n]`."""


class ChannelState(NamedTuple):
    """State of `only_chosen_channels`.

    Attributes:
      taken: steps, i32[].
      chosen: which output channels learn, bool `[*s 1 n]` at the path of each parameter.
      inner: of the optimizer within.
    """

    taken: jax.Array
    chosen: Any
    inner: optax.OptState


def importance(w: Float[Array, "*s k n"]) -> Float[Array, "*s n"]:
    """Returns the mean magnitude of the weights of each output channel, as the paper measures what matters."""
    return jnp.mean(jnp.abs(w), axis=-2)


def of_each_matrix(importances: Importances, share: float) -> list[Bool[Array, "..."]]:
    """Returns the channels to train, the same share of every matrix: the paper's CWPL.

    Args:
      importances: of each parameter; the layers of a stack are matrices of their own.
      share: above 0, to 1. A matrix keeps at least one channel.
    """
    return [_highest(own, max(1, round(share * own.shape[-1]))) for own in importances]


def of_the_network(importances: Importances, share: float) -> list[Bool[Array, "..."]]:
    """Returns the channels to train, a share of all there are, wherever they stand: the paper's CWPN."""
    every = jnp.concatenate([own.ravel() for own in importances])
    highest = _highest(every, max(1, round(share * every.size)))
    ends = np.cumsum([own.size for own in importances])[:-1].tolist()
    return [flags.reshape(own.shape) for flags, own in zip(jnp.split(highest, ends), importances, strict=True)]


def of_whole_matrices(importances: Importances, share: float) -> list[Bool[Array, "..."]]:
    """Returns the channels to train, those of whole matrices: the paper's LWPN.

    Matrices are taken from the most important on (mean over their channels), as long as their channels together are no
    more than the share; the first is always taken.
    """
    means = jnp.concatenate([jnp.mean(own, axis=-1).ravel() for own in importances])
    sizes = np.concatenate([np.full(own.size // own.shape[-1], own.shape[-1], np.int32) for own in importances])
    order = jnp.argsort(-means)
    fits = jnp.cumsum(jnp.asarray(sizes)[order]) <= round(share * int(sizes.sum()))
    taken = fits.at[0].set(True)[jnp.argsort(order)]
    ends = np.cumsum([own.size // own.shape[-1] for own in importances])[:-1].tolist()
    return [
        jnp.broadcast_to(flags.reshape(*own.shape[:-1], 1), own.shape)
        for flags, own in zip(jnp.split(taken, ends), importances, strict=True)
    ]


CHOICES: dict[str, Callable[[Importances, float], list[Any]]] = {
    "matrix": of_each_matrix,
    "network": of_the_network,
    "layer": of_whole_matrices,
}
"""By the name that a config gives."""


def only_chosen_channels(
    optimizer: optax.GradientTransformation,
    paths: Collection[str],
    choose: Callable[[Importances, float], list[Any]],
    share: float,
    every: int,
) -> optax.GradientTransformation:
    """Returns an optimizer that moves but a share of the output channels of some parameters, and all of the others.

        every so many steps, the first included:   c  <- the channels of highest `importance`, by `choose`
        g <- g in channels of c, 0 in others;   u <- optimizer(g);   W <- W + (u in channels of c, 0 in others)

    To the optimizer within, the gradient of a channel that stands still is zero: it has no share in the norm that
    clips, and its moments die away as b1^t and b2^t, so that one that comes back begins as one that is new. The choice
    is part of the state: what resumes between two choices goes on with the first.

    Args:
      optimizer: what moves the channels.
      paths: of the parameters in question, matrices `[*s k n]` among what the optimizer trains.
      choose: one of `CHOICES`.
      share: of the channels, above 0, to 1.
      every: steps from one choice to the next.
    """
    order = sorted(paths)

    def choice(params: Any) -> Any:
        flat = flatten(params)
        flags = choose([importance(flat[path]) for path in order], share)
        return unflatten({path: own[..., None, :] for path, own in zip(order, flags, strict=True)})

    def init(params: Any) -> ChannelState:
        shapes = jax.eval_shape(choice, params)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return ChannelState(jnp.zeros((), jnp.int32), nothing, optimizer.init(params))

    def update(updates: Any, state: ChannelState, params: Any = None) -> tuple[Any, ChannelState]:
        # Looked at in every step: a branch that only some steps take would hold collectives of a sharded model, which
        # devices that meet others on their way in another order wait for without end.
        due = state.taken % every == 0
        chosen = jax.tree.map(lambda new, old: jnp.where(due, new, old), choice(params), state.chosen)
        moved, inner = optimizer.update(_within(chosen, updates), state.inner, params)
        return _within(chosen, moved), ChannelState(optax.safe_increment(state.taken), chosen, inner)

    return optax.GradientTransformation(init, update)


def _within(chosen: Any, updates: Any) -> Any:
    """Updates of what is not chosen are zero."""
    flags = flatten(chosen)

    def mask(path: Any, u: jax.Array) -> jax.Array:
        own = flags.get(path_string(path))
        return u if own is None else jnp.where(own, u, jnp.zeros_like(u))

    return jax.tree_util.tree_map_with_path(mask, updates)


def _highest(x: Float[Array, "*s n"], count: int) -> Bool[Array, "*s n"]:
    """Flags the `count` highest of each last axis; of equal ones the first."""
    return jnp.argsort(jnp.argsort(-x, axis=-1), axis=-1) < count
