"""Runs a packed Llama-family model: prompt in, tokens out, no jax. In numpy, or in compiled kernels."""

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ConfigError, DataError, nearest
from lowbit.formats import PackedModel
from lowbit.kernels import library
from lowbit.kernels.cache import KVCache
from lowbit.kernels.compiled import CompiledWeights
from lowbit.kernels.decoder import rotation
from lowbit.kernels.forward import forward
from lowbit.kernels.rounding import made_for
from lowbit.kernels.sampling import Sampling, sample
from lowbit.kernels.weights import Activations, Storage, Weights
from lowbit.llama import LlamaConfig, rope_frequencies

PREFILL_TOKENS = 256
"""Tokens of a prompt per forward pass: bounds the attention scores to this many rows."""


class Runtime:
    """A decoder over the weights of a packed model.

    With kernels "numpy" it is computed in float32, product by product: what everything else is compared with. With
    compiled ones a whole forward pass is one call, and activations are by default rounded to 8 bits in front of each
    packed matrix.

    Sequences end at the config's `max_positions`, so "dynamic" rope scaling never leaves its first form and
    cached keys stay valid.

    Threads may share a runtime, each with caches of its own.

    Args:
      packed: a model as `lowbit.formats.read` returns it.
      storage: of numpy's weights: "float32", the default, decodes them once, "packed" at every use (slow, least
        memory). Compiled kernels have one of their own.
      kernels: "numpy"; "auto" for the fastest compiled ones that this processor has; or their name, see
        `library.KERNELS`.
      activations: "float32" or "int8", see `weights.Activations`; None takes what the model was made for or, where its
        activations are floats, "float32" with numpy and "int8" with compiled kernels.
      threads: of compiled kernels; None takes all processors. Results do not depend on it.

    Raises:
      ModelError: a config of a family not supported, or a model made for a rounding of activations that is not computed
        here.
      FormatError: tensors that do not fit the config, or damaged ones.
      ConfigError: unknown storage, kernels or activations, kernels that this processor lacks, or storage for compiled
        ones.
      KernelError: compiled kernels are asked for, and neither there nor to be made.
    """

    def __init__(
        self,
        packed: PackedModel,
        *,
        storage: Storage | None = None,
        kernels: str = "numpy",
        activations: str | None = None,
        threads: int | None = None,
    ):
        self.config = LlamaConfig.from_hf(packed.config)
        activations = made_for(packed, self.config, activations)
        self.kernels = library.choose(kernels)
        self.weights: Weights | CompiledWeights
        if self.kernels == "numpy":
            self.weights = Weights(packed, self.config, storage or "float32", activations or "float32")
        else:
            self.weights = _compiled_weights(packed, self.config, storage, self.kernels, activations, threads)
        self._inv_freq, self._attention_factor = rope_frequencies(self.config)

    def new_cache(self, batch: int = 1) -> KVCache:
        """Returns an empty cache for sequences of the same length side by side."""
        return KVCache(self.config, batch)

    def forward(self, tokens: NDArray[np.integer], cache: KVCache | None = None) -> NDArray[np.float32]:
        """Returns logits f32[b t V] of tokens int[b t] that follow those in the cache, and adds them to it.

        Raises:
          DataError: tokens outside of the vocabulary, another batch than the cache's, or too many positions.
        """
        return self.head(self.hidden(tokens, cache))

    def hidden(self, tokens: NDArray[np.integer], cache: KVCache | None = None) -> NDArray[np.float32]:
        """Returns the normalised last hidden state f32[b t d]; arguments and errors as `forward`."""
        self._check_tokens(tokens)
        b, t = tokens.shape
        if cache is None:
            cache = KVCache(self.config, b, capacity=t)
        if cache.batch != b:
            raise DataError(f"{b} sequences for a cache of {cache.batch}", "make a cache with new_cache(batch)")
        cache.reserve(t)
        positions = np.arange(cache.length, cache.length + t)
        angles = rotation(positions, self._inv_freq, self._attention_factor)
        x = self.weights.rows("embed.embedding", tokens)
        if isinstance(self.weights, CompiledWeights) and self.weights.in_one_call:
            x = self.weights.forward(x, angles, cache)
        else:
            x = forward(self.weights, self.config, x, angles, cache)
        cache.advance(t)
        return x

    def head(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits f32[... V] of hidden states f32[... d]."""
        if self.config.tie_embeddings:
            return self.weights.matmul(hidden, "embed.embedding", transposed=True)
        return self.weights.matmul(hidden, "lm_head.kernel")

    def generate(
        self,
        prompt_tokens: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Yields up to `max_new_tokens` tokens after the prompt, one as soon as it is known.

        Args:
          prompt_tokens: at least one token; start with the config's bos token where there is no text.
          max_new_tokens: upper limit; fewer come where a stop token ends the text.
          temperature: see `Sampling`; 0 is greedy.
          top_k: see `Sampling`.
          top_p: see `Sampling`.
          seed: of the draws; equal seeds give equal text.
          stop_tokens: end the text and are not yielded; None takes the config's eos tokens.

        Raises:
          DataError: an empty prompt, tokens outside of the vocabulary, or more tokens than positions.
          ConfigError: a sampling value out of its range.
        """
        sampling = Sampling(temperature, top_k, top_p)
        if len(prompt_tokens) == 0:
            raise DataError("the prompt is empty", "give at least one token, such as bos_token_id")
        prompt = np.asarray(prompt_tokens)[None, :]
        self._check_tokens(prompt)
        total = prompt.size + max_new_tokens
        if max_new_tokens < 0 or total > self.config.max_positions:
            raise DataError(
                f"a prompt of {prompt.size} tokens and {max_new_tokens} new ones do not fit the model's "
                f"{self.config.max_positions} positions",
                "shorten the prompt or ask for fewer tokens",
            )
        stop = frozenset(self.config.eos_token_ids if stop_tokens is None else stop_tokens)
        # All checks are above, in a plain function: a generator would put them off to the first token.
        return self._continue(prompt, max_new_tokens, sampling, np.random.default_rng(seed), stop)

    def _continue(
        self,
        prompt: NDArray[np.integer],
        max_new_tokens: int,
        sampling: Sampling,
        rng: np.random.Generator,
        stop: frozenset[int],
    ) -> Iterator[int]:
        cache = self.new_cache()
        tokens = prompt
        for _ in range(max_new_tokens):
            for start in range(0, tokens.size, PREFILL_TOKENS):
                hidden = self.hidden(tokens[:, start : start + PREFILL_TOKENS], cache)
            token = sample(self.head(hidden[0, -1]), sampling, rng)
            if token in stop:
                return
            yield token
            tokens = np.array([[token]])

    def _check_tokens(self, tokens: NDArray[np.integer]) -> None:
        if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
            raise DataError(
                f"tokens are {tokens.dtype}{list(tokens.shape)}", "give integers [batch tokens], at least one each"
            )
        outside = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if outside.size:
            raise DataError(
                f"token {int(outside[0])} is outside of the vocabulary of {self.config.vocab_size}",
                "use the tokenizer that belongs to the model",
            )


def _compiled_weights(
    packed: PackedModel,
    config: LlamaConfig,
    storage: Storage | None,
    isa: str,
    activations: str | None,
    threads: int | None,
) -> CompiledWeights:
    if storage is not None:
        raise ConfigError(f"storage {storage!r} is for numpy, not for {isa} kernels", "leave storage out")
    if threads is not None and threads < 1:
        raise ConfigError(f"{threads} threads", "ask for one or more, or leave it out")
    if activations not in (None, *get_args(Activations)):
        raise ConfigError(f"unknown activations {activations!r}", nearest(str(activations), get_args(Activations)))
    return CompiledWeights(packed, config, isa, activations or "int8", threads or library.default_threads())
