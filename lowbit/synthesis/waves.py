"""The compiled programs of a wave: many texts side by side, from their first tokens to their ends.

A wave is written in stages. Between two of them the host looks at which texts have ended, and where few are left, they
move together into a smaller batch; and the cache grows, so that early tokens do not read slots of late ones. Within a
stage nothing goes to the host. Devices share nothing but the weights: each has its own texts and its own loop.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from lowbit.errors import ConfigError
from lowbit.generation import Decoder, Weights
from lowbit.generation.cache import KVCache, empty_cache
from lowbit.generation.loop import NO_TOKEN
from lowbit.generation.sampling import sample
from lowbit.generation.stored import Stored
from lowbit.kernels.sampling import Sampling
from lowbit.synthesis.recipe import Recipe, Texts

AXIS = "text"
STAGE = 256
"""Tokens of a stage, and slots by which the cache grows."""
SMALLEST = 8
"""A batch shrinks by halves down to this part of its first size: programs are compiled for few sizes."""


class Draws(NamedTuple):
    """What decides next tokens beside the logits.

    Attributes:
      seeds: u32[b].
      greedy: i32[b], lengths up to which the likeliest token is taken.
    """

    seeds: Any
    greedy: Any


class Wave(NamedTuple):
    """Texts that are being written.

    Attributes:
      cache: of all but the newest token.
      newest: i32[b].
      tokens: i32[b N], `NO_TOKEN` where nothing is written.
      lengths: i32[b], tokens of each; what ends a text is not among them.
      ended: bool[b].
    """

    cache: KVCache
    newest: Any
    tokens: Any
    lengths: Any
    ended: Any


class Teacher(NamedTuple):
    """A model that writes, and the devices that it writes on.

    Attributes:
      decoder: what programs depend on.
      weights: a copy on each device of the mesh.
      special: bool[V], tokens that end a text.
      mesh: devices along `AXIS`.
    """

    decoder: Decoder
    weights: Weights
    special: Any
    mesh: Mesh


def make_teacher(decoder: Decoder, weights: Weights, special: NDArray[np.bool_], devices: list[Any]) -> Teacher:
    """Puts weights and special tokens onto the devices.

    Raises:
      ConfigError: a cache of keys that are turned when they are read.
    """
    if not decoder.cache.rotated:
        raise ConfigError(
            "a cache of keys before their rotation is turned as a whole for every token",
            "hold keys rotated (--kv-bits)",
        )
    mesh = Mesh(np.array(devices), (AXIS,))
    everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())
    on_all, ending = jax.device_put((weights, jnp.asarray(special)), everywhere)
    return Teacher(decoder, on_all, ending, mesh)


def check_batch(teacher: Teacher, batch: int) -> None:
    """Refuses a batch that the devices cannot share evenly; raises ConfigError."""
    devices = teacher.mesh.size
    if batch % devices:
        raise ConfigError(f"a batch of {batch} texts on {devices} devices", f"give a multiple of {devices}")


def write(teacher: Teacher, recipe: Recipe, texts: Texts) -> list[NDArray[np.int32]]:
    """Returns the tokens of each text, its start token first.

    Raises:
      ConfigError: the texts cannot be shared out evenly.
    """
    check_batch(teacher, len(texts.numbers))
    return _ordered(len(texts.numbers), _written(teacher, recipe, texts))


class _Left(NamedTuple):
    """What was written when texts left a wave, on the host: whoever held the wave itself would hold its cache."""

    places: NDArray[np.int64]
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    ended: NDArray[np.bool_]


def _ordered(count: int, finished: Iterator[_Left]) -> list[NDArray[np.int32]]:
    rows: dict[int, NDArray[np.int32]] = {}
    for left in finished:
        whole = left.ended | (left.lengths == left.tokens.shape[1])
        for row in np.flatnonzero(whole).tolist():
            rows.setdefault(int(left.places[row]), left.tokens[row, : left.lengths[row]])
    return [rows[place] for place in range(count)]


def _written(teacher: Teacher, recipe: Recipe, texts: Texts) -> Iterator[_Left]:
    """Yields what a wave has written whenever texts leave it, and at its end."""
    count = len(texts.numbers)
    places = np.arange(count, dtype=np.int64)
    by_text = jax.sharding.NamedSharding(teacher.mesh, PartitionSpec(AXIS))
    starts, draws = jax.device_put((texts.starts, Draws(texts.seeds, texts.greedy)), by_text)
    capacity = min(STAGE, recipe.length)
    wave = begin(teacher.decoder, teacher.mesh, capacity, recipe.length, starts)
    at = 1
    for until in stages(recipe):
        if until > capacity:
            capacity = min(capacity + STAGE, recipe.length)
            for part in ("keys", "values"):  # one after the other: nothing but that part is there twice
                longer = grow(teacher.mesh, capacity, getattr(wave.cache, part))
                wave = wave._replace(cache=dataclasses.replace(wave.cache, **{part: longer}))
        opening = at < recipe.greedy[1]
        wave = advance(
            teacher.decoder, recipe.sampling, teacher.mesh, at, until, opening, teacher.weights, teacher.special, wave,
            draws,
        )  # fmt: skip
        at = until
        ended = np.asarray(jax.device_get(wave.ended))
        if ended.all():
            break
        chosen = survivors(ended, teacher.mesh.size, count // SMALLEST)
        if len(chosen) < len(ended):
            yield _Left(places, *jax.device_get((wave.tokens, wave.lengths, wave.ended)))
            places = places[chosen]
            local = (chosen % (len(ended) // teacher.mesh.size)).astype(np.int32)
            wave, draws = shrink(teacher.mesh, jax.device_put(local, by_text), wave, draws)
    yield _Left(places, *jax.device_get((wave.tokens, wave.lengths, wave.ended)))


def stages(recipe: Recipe) -> list[int]:
    """Returns the lengths at which stages end; the first ends with the greedy tokens."""
    ends = [*range(STAGE, recipe.length, STAGE), recipe.length]
    return sorted({recipe.greedy[1], *ends})


def survivors(ended: NDArray[np.bool_], devices: int, smallest: int) -> NDArray[np.int64]:
    """Returns the places of the texts that go on, all where no halving of the batch holds those of each device.

    Args:
      ended: bool[b].
      devices: each has b / devices of the texts.
      smallest: a batch is not cut below it.
    """
    rows = ended.reshape(devices, -1)
    size = rows.shape[1]
    living = int((~rows).sum(axis=1).max())
    while size % 2 == 0 and size // 2 >= max(living, 1) and size // 2 * devices >= smallest:
        size //= 2
    chosen = np.argsort(rows, axis=1, kind="stable")[:, :size]
    return np.asarray(np.sort(chosen, axis=1) + np.arange(devices)[:, None] * rows.shape[1]).reshape(-1)


@functools.partial(jax.jit, static_argnames=("decoder", "mesh", "capacity", "length"))
def begin(decoder: Decoder, mesh: Mesh, capacity: int, length: int, starts: jax.Array) -> Wave:
    """Returns a wave of texts of one token each, i32[b]; they may grow to `length` tokens."""

    def local(starts: jax.Array) -> Wave:
        b = starts.shape[0]
        cache = empty_cache(decoder.cfg, decoder.cache, jnp.zeros(b, jnp.int32), capacity, decoder.attention)
        tokens = jnp.full((b, length), NO_TOKEN, jnp.int32).at[:, 0].set(starts)
        return Wave(cache, starts, tokens, jnp.ones(b, jnp.int32), jnp.zeros(b, bool))

    begun: Wave = _on_each(local, mesh, (), (starts,), jax.eval_shape(local, starts))
    return begun


@functools.partial(jax.jit, static_argnames=("mesh", "capacity"))
def grow(mesh: Mesh, capacity: int, stored: Stored) -> Stored:
    """Returns keys, or values, with more slots."""

    def local(stored: Stored) -> Stored:
        more = ((0, 0), (0, 0), (0, 0), (0, capacity - stored.codes.shape[3]), (0, 0))
        padded: Stored = jax.tree.map(lambda x: jnp.pad(x, more), stored)
        return padded

    longer: Stored = _on_each(local, mesh, (), (stored,), stored)
    return longer


@functools.partial(jax.jit, static_argnames="mesh")
def shrink(mesh: Mesh, rows: jax.Array, wave: Wave, draws: Draws) -> tuple[Wave, Draws]:
    """Returns some texts of a wave: i32[b'], their rows, each counted on its own device."""

    def local(rows: jax.Array, wave: Wave, draws: Draws) -> tuple[Wave, Draws]:
        keys, values = jax.tree.map(lambda x: jnp.take(x, rows, axis=1), (wave.cache.keys, wave.cache.values))
        cache = dataclasses.replace(wave.cache, keys=keys, values=values, start=wave.cache.start[rows])
        others = (x[rows] for x in (wave.newest, wave.tokens, wave.lengths, wave.ended))
        return Wave(cache, *others), Draws(draws.seeds[rows], draws.greedy[rows])

    fewer: tuple[Wave, Draws] = _on_each(local, mesh, (), (rows, wave, draws), (wave, draws))
    return fewer


@functools.partial(
    jax.jit, static_argnames=("decoder", "sampling", "mesh", "at", "until", "opening"), donate_argnames="wave"
)
def advance(
    decoder: Decoder,
    sampling: Sampling,
    mesh: Mesh,
    at: int,
    until: int,
    opening: bool,
    weights: Weights,
    special: jax.Array,
    wave: Wave,
    draws: Draws,
) -> Wave:
    """Writes on, from texts of `at` tokens to texts of `until`, or until all texts of a device have ended.

    Args:
      decoder: static, as all up to `opening`.
      sampling: of tokens that are drawn.
      mesh: of the texts.
      at: tokens of each text that has not ended.
      until: of which the cache holds all but one.
      opening: whether a text may still take its likeliest token.
      weights: on each device.
      special: bool[V], tokens that end a text.
      wave: given away.
      draws: of its texts.
    """

    def local(weights: Weights, special: jax.Array, wave: Wave, draws: Draws) -> Wave:
        def unfinished(carry: tuple[jax.Array, Wave]) -> jax.Array:
            number, wave = carry
            return (number < until) & ~jnp.all(wave.ended)

        def body(carry: tuple[jax.Array, Wave]) -> tuple[jax.Array, Wave]:
            number, wave = carry
            hidden, cache = decoder.forward(weights, wave.newest[:, None], wave.cache)
            logits = decoder.logits(weights, hidden[:, -1])
            token = sample(logits, sampling, draws.seeds, number)
            if opening:
                likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
                token = jnp.where(number < draws.greedy, likeliest, token)
            ended = wave.ended | special[token]
            column = jnp.where(ended, NO_TOKEN, token)[:, None]
            tokens = jax.lax.dynamic_update_slice(wave.tokens, column, (jnp.zeros_like(number), number))
            lengths = wave.lengths + (~ended).astype(jnp.int32)
            return number + jnp.int32(1), Wave(cache, token, tokens, lengths, ended)

        _, written = jax.lax.while_loop(unfinished, body, (jnp.int32(at), wave))
        # Devices that are done earlier have used fewer slots; what follows is read by nobody then.
        return written._replace(cache=dataclasses.replace(written.cache, length=jnp.int32(until - 1)))

    written: Wave = _on_each(local, mesh, (weights, special), (wave, draws), wave)
    return written


def _on_each(local: Any, mesh: Mesh, shared: tuple[Any, ...], own: tuple[Any, ...], like: Any) -> Any:
    """What `local(*shared, *own)` returns on each device, with its own texts; `like` has the form of the result."""
    everywhere = jax.tree.map(lambda x: PartitionSpec(), shared)
    inputs = (*everywhere, *jax.tree.map(_by_text, own))
    # Loops of their own length on each device are what the check for replicated values cannot follow.
    mapped = jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=jax.tree.map(_by_text, like), check_vma=False)
    return mapped(*shared, *own)


def _by_text(x: Any) -> PartitionSpec:
    """Caches are [L b kv_heads T h], a length is the same everywhere, and all else begins with the texts."""
    return {0: PartitionSpec(), 5: PartitionSpec(None, AXIS)}.get(x.ndim, PartitionSpec(AXIS))
