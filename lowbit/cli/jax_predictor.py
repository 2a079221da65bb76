"""Likelihoods from the Flax model, in float32."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowbit.cli.evaluate import Predictor
from lowbit.export.packed import unpack_params
from lowbit.formats import PackedModel
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer, pretrained
from lowbit.train.objectives import nll_function
from lowbit.tree import unflatten
from lowbit.tree.paths import Tree

LOGITS_AT_ONCE = 1 << 26
"""float32 logits in memory: 256 MB."""


def predictor(cfg: LlamaConfig, params: Tree, tokenizer_files: Mapping[str, bytes]) -> Predictor:
    """Returns a predictor of plain float parameters."""

    def make_nll(batch: int, length: int, separator: int | None) -> Callable[[NDArray[np.int32]], jax.Array]:
        chunks = _chunks(length, batch * length * cfg.vocab_size)
        compiled = jax.jit(nll_function(Transformer(cfg, jnp.float32, separator=separator), chunks))
        variables = jax.device_put({"params": params})
        return lambda tokens: compiled(variables, jnp.asarray(tokens))

    return Predictor(cfg, tokenizer_files, "jax", make_nll)


def packed_predictor(cfg: LlamaConfig, packed: PackedModel) -> Predictor:
    """Returns a predictor of a packed file's decoded weights."""
    params: dict[str, Any] = unflatten(unpack_params(cfg, packed))
    return predictor(cfg, params, packed.tokenizer)


def pretrained_predictor(source: str) -> Predictor:
    """Returns a predictor of a float model as it is."""
    loaded = pretrained.load(source)
    return predictor(loaded.cfg, loaded.params, loaded.tokenizer_files)


def _chunks(length: int, logits: int) -> int:
    """The fewest pieces of equal size that a sequence can be cut into so that a piece's logits fit."""
    return next(n for n in range(1, length + 1) if length % n == 0 and (logits <= n * LOGITS_AT_ONCE or n == length))
