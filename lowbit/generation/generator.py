"""Tokens in, tokens out: prompts of any lengths side by side, as a stream or all at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from lowbit.errors import ConfigError, DataError
from lowbit.formats import PackedModel
from lowbit.generation import loop
from lowbit.generation.cache import KVCache
from lowbit.generation.decoder import Decoder, check_activations
from lowbit.generation.step_attention import chosen_method
from lowbit.generation.stored import cache_kind
from lowbit.generation.weights import Weights, from_packed, from_params
from lowbit.kernels.sampling import Sampling
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding, CacheKind, LlamaConfig
from lowbit.llama.activations import INT8, Ranges, from_meta
from lowbit.pallas import kernel_runs_here
from lowbit.tree.paths import Tree

GREEDY = Sampling()
PIECE_TOKENS = 256
"""Longest piece of the prompts in one pass: bounds the scores to this many rows a sequence."""
CAPACITY_STEP = 128
"""Caches have a multiple of this many slots, so that programs are compiled for few sizes."""


class Generated(NamedTuple):
    """What followed each prompt.

    Attributes:
      tokens: i32[b N], `loop.NO_TOKEN` behind a sequence's end.
      lengths: i32[b], tokens of each; a stop token is not among them.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]

    def rows(self) -> list[list[int]]:
        """Returns each sequence's tokens."""
        return [row[:n].tolist() for row, n in zip(self.tokens, self.lengths, strict=True)]


class _Batch(NamedTuple):
    """Prompts that end together: i32[b t], filled up in front, and the slot of each one's first token."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int32]
    piece: int


class Generator:
    """A decoder with its weights on the device. Programs are compiled once for each batch, piece and capacity.

    Attributes:
      decoder: what the programs depend on.
      weights: on the device.
      capacity: slots of every cache; None takes what prompts and new tokens need, rounded up to `CAPACITY_STEP`.
    """

    def __init__(self, decoder: Decoder, weights: Weights, capacity: int | None = None):
        if capacity is not None and capacity < 1:
            raise ConfigError(f"a cache of {capacity} slots holds no token", "give 1 slot or more, or leave it out")
        self.decoder, self.weights, self.capacity = decoder, weights, capacity

    @classmethod
    def from_params(
        cls,
        cfg: LlamaConfig,
        params: Tree,
        *,
        dtype: DTypeLike = jnp.float32,
        cache: str | None = None,
        capacity: int | None = None,
        kernels: str = "auto",
        attention: str = "auto",
        rounding: ActivationRounding = FLOAT_ACTIVATIONS,
        ranges: Ranges | None = None,
    ) -> "Generator":
        """Returns a generator of a float parameter tree; give `tree.fake_quant` of one that is trained.

        Args:
          cfg: the model's sizes.
          params: what it computes with.
          dtype: of activations and matmuls.
          cache: a name of `CACHE_KINDS`; None takes what `rounding` says, floats of 32 bits without.
          capacity: see the class.
          kernels: how matrices lie on the device, see `weights.from_params`.
          attention: how a single token attends, see `step_attention.chosen_method`.
          rounding: how the model's activations are rounded.
          ranges: the calibrated ones that `rounding` asks for.

        Raises:
          QuantizerError: a kind that the cache cannot hold, or that the attention asked for cannot read.
          ModelError: inputs that are rounded by ranges of a whole window.
          ConfigError: a capacity below 1, unknown kernels, or attention that is unknown or does not take these heads.
        """
        rounding.check_causal()
        kind = _kind(cache, rounding)
        method = chosen_method(attention, cfg, kind, dtype)
        decoder = Decoder(cfg, jnp.dtype(dtype).name, kind, "float32", rounding, method, kernel_runs_here())
        weights = from_params(params, dtype, ranges, rounding=rounding, kernels=kernels)
        return cls(decoder, weights, capacity)

    @classmethod
    def from_packed(
        cls,
        packed: PackedModel,
        *,
        dtype: DTypeLike = jnp.float32,
        cache: str | None = None,
        activations: str = "float32",
        kernels: str = "auto",
        attention: str = "auto",
        capacity: int | None = None,
    ) -> "Generator":
        """Returns a generator of a packed model, whose codes stay packed on the device.

        Inputs of linear layers are rounded as the file says, and so are keys and values, unless `cache` names another
        kind. `kernels` says what multiplies by the codes, see `weights.from_packed`, and `attention` how a single token
        attends, see `step_attention.chosen_method`.

        Raises:
          FormatError: a record of activations that cannot be read.
          ModelError: a config of a family not supported, tensors that cannot be run packed, or inputs rounded by ranges
            of a whole window.
          QuantizerError: a kind that the cache cannot hold, or that the attention asked for cannot read.
          ConfigError: unknown activations, kernels or attention, heads that the attention asked for cannot take, 8-bit
            activations for a model that rounds inputs otherwise, or a capacity below 1.
        """
        check_activations(activations)
        cfg = LlamaConfig.from_hf(packed.config)
        rounding, _ = from_meta(packed.meta, cfg)
        rounding.check_causal()
        if activations == "int8" and any(one != INT8 for _, one in rounding.inputs):
            raise ConfigError(
                f"the model was made for {rounding.described()}, which 8-bit activations would round again",
                "leave activations at float32: inputs are rounded as the file says",
            )
        kind = _kind(cache, rounding)
        method = chosen_method(attention, cfg, kind, dtype)
        decoder = Decoder(cfg, jnp.dtype(dtype).name, kind, activations, rounding, method, kernel_runs_here())
        return cls(decoder, from_packed(cfg, packed, dtype, kernels), capacity)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        seeds: Sequence[int] | None = None,
        stop_tokens: Sequence[int] | None = None,
    ) -> Generated:
        """Returns what follows each prompt, generated on the device in one program.

        Args:
          prompts: at least one, of one token or more each.
          max_new_tokens: upper limit for each, 1 or more.
          sampling: see `Sampling`.
          seeds: one a prompt; None numbers them from 0. A row's tokens do not depend on the rows beside it.
          stop_tokens: end a sequence and are left out; None takes the config's eos tokens.

        Raises:
          DataError: no prompt, an empty one, tokens outside of the vocabulary, no new tokens, seeds that are not one
            a prompt, or more tokens than the cache or the model has positions.
        """
        batch, capacity, draws = self._checked(prompts, max_new_tokens, seeds, stop_tokens)
        logits, cache = self._prefill(batch, capacity)
        tokens, lengths, _ = loop.generate(self.decoder, sampling, max_new_tokens, self.weights, logits, cache, draws)
        return Generated(np.asarray(tokens), np.asarray(lengths))

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        seeds: Sequence[int] | None = None,
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[NDArray[np.int32]]:
        """Yields the next token of each prompt, i32[b], as soon as it is known; `loop.NO_TOKEN` where one has ended.

        Arguments, errors and tokens are those of `generate`.
        """
        batch, capacity, draws = self._checked(prompts, max_new_tokens, seeds, stop_tokens)
        # All checks are above, in a plain function: a generator would put them off to the first token.
        return self._stream(batch, capacity, max_new_tokens, sampling, draws)

    def _stream(
        self, batch: _Batch, capacity: int, max_new_tokens: int, sampling: Sampling, draws: loop.Draws
    ) -> Iterator[NDArray[np.int32]]:
        logits, cache = self._prefill(batch, capacity)
        token, ends = loop.draw(sampling, logits, draws, jnp.int32(0))
        ended = np.zeros(len(batch.starts), bool)
        for number in range(1, max_new_tokens + 1):
            shown, stops = token, ends
            if number < max_new_tokens:  # the device goes on while the host looks at what it has
                token, ends, cache = loop.advance(
                    self.decoder, sampling, self.weights, token, cache, draws, jnp.int32(number)
                )
            ended = ended | np.asarray(stops)
            if ended.all():
                return
            yield np.where(ended, loop.NO_TOKEN, np.asarray(shown)).astype(np.int32)

    def _prefill(self, batch: _Batch, capacity: int) -> tuple[jax.Array, KVCache]:
        cache = loop.start(self.decoder, jnp.asarray(batch.starts), capacity)
        for begin in range(0, batch.tokens.shape[1], batch.piece):
            piece = jnp.asarray(batch.tokens[:, begin : begin + batch.piece])
            logits, cache = loop.prefill(self.decoder, self.weights, piece, cache)
        return logits, cache

    def _checked(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        seeds: Sequence[int] | None,
        stop_tokens: Sequence[int] | None,
    ) -> tuple[_Batch, int, loop.Draws]:
        """Everything that may be wrong, before any work."""
        cfg = self.decoder.cfg
        if max_new_tokens < 1:
            raise DataError(f"{max_new_tokens} new tokens are an empty generation", "ask for 1 token or more")
        if not prompts or any(len(prompt) == 0 for prompt in prompts):
            raise DataError("there is no prompt, or an empty one", "give at least one token each, such as bos_token_id")
        for prompt in prompts:
            for token in prompt:
                if not 0 <= token < cfg.vocab_size:
                    raise DataError(
                        f"token {token} is outside of the vocabulary of {cfg.vocab_size}",
                        "use the tokenizer that belongs to the model",
                    )
        numbers = list(range(len(prompts))) if seeds is None else list(seeds)
        if len(numbers) != len(prompts) or not all(0 <= seed < 2**32 for seed in numbers):
            raise DataError(
                f"{len(numbers)} seeds for {len(prompts)} prompts", "give one a prompt, from 0 to 4294967295"
            )
        stop = cfg.eos_token_ids if stop_tokens is None else stop_tokens
        batch = _aligned(prompts)
        draws = loop.Draws(jnp.asarray(numbers, jnp.uint32), jnp.asarray(list(stop), jnp.int32))
        return batch, self._capacity(batch, max(map(len, prompts)), max_new_tokens), draws

    def _capacity(self, batch: _Batch, longest: int, new: int) -> int:
        if longest + new > self.decoder.cfg.max_positions:
            raise DataError(
                f"a prompt of {longest} tokens and {new} new ones do not fit the model's "
                f"{self.decoder.cfg.max_positions} positions",
                "shorten the prompt or ask for fewer tokens",
            )
        slots = batch.tokens.shape[1] + new
        if self.capacity is None:
            return -(-slots // CAPACITY_STEP) * CAPACITY_STEP
        if slots > self.capacity:
            raise DataError(
                f"prompts filled up to {batch.tokens.shape[1]} tokens and {new} new ones do not fit the cache's "
                f"{self.capacity} slots",
                "give the cache more slots, shorten the prompts or ask for fewer tokens",
            )
        return self.capacity


def _kind(name: str | None, rounding: ActivationRounding) -> CacheKind:
    """The kind of cache that is asked for or, where none is, the one that the model was made for."""
    if name is None and rounding.cache is not None:
        return rounding.cache
    return cache_kind("float32" if name is None else name)


def _aligned(prompts: Sequence[Sequence[int]]) -> _Batch:
    """Prompts that end at the same slot, filled up in front to a whole number of pieces of equal size.

    So all rows write the same slot at each step, and what is written is a slice, not a scatter.
    """
    longest = max(map(len, prompts))
    piece = min(PIECE_TOKENS, 1 << (longest - 1).bit_length())
    slots = -(-longest // piece) * piece
    tokens = np.zeros((len(prompts), slots), np.int32)
    starts = np.array([slots - len(prompt) for prompt in prompts], np.int32)
    for row, begin, prompt in zip(tokens, starts, prompts, strict=True):
        row[begin:] = prompt
    return _Batch(tokens, starts, piece)
