"""Likelihoods from the Flax model, in float32; the rows of a batch are spread over the devices of this process."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from lowbit.evals.integer_model import integer_kernels, integer_product
from lowbit.evals.predictor import Logits, Nll, Predictor, Scores
from lowbit.export.packed import unpack_params
from lowbit.formats import PackedModel
from lowbit.llama import FLOAT_ACTIVATIONS, LINEARS, ActivationRounding, LlamaConfig
from lowbit.llama.activations import Ranges, from_meta
from lowbit.models import Transformer, pretrained
from lowbit.models.activations import range_variables, rounding_hooks
from lowbit.models.chunks import cut, join, rows
from lowbit.models.layers import PACKED
from lowbit.models.packed import packed_name
from lowbit.train.objectives import nll_function
from lowbit.tree import unflatten
from lowbit.tree.paths import Tree

LOGITS_AT_ONCE = 1 << 26
"""float32 logits in memory: 256 MB."""


def predictor(
    cfg: LlamaConfig,
    params: Tree,
    tokenizer_files: Mapping[str, bytes],
    rounding: ActivationRounding = FLOAT_ACTIVATIONS,
    ranges: Ranges | None = None,
) -> Predictor:
    """Returns a predictor of plain float parameters.

    Rows of a batch are cut over as many devices as divide them; each device holds all parameters.

    Args:
      cfg: the model's sizes.
      params: what it computes with.
      tokenizer_files: by name.
      rounding: how its activations are rounded, keys and values as a cache would hold them.
      ranges: the calibrated ones that `rounding` asks for.
    """
    variables = {"params": params, "grid": range_variables(ranges or {})}
    model = Transformer(cfg, jnp.float32, hooks=rounding_hooks(rounding))
    return _of_model(model, variables, tokenizer_files, "jax")


def integer_predictor(cfg: LlamaConfig, packed: PackedModel) -> Predictor:
    """Returns a predictor of a packed file whose linear layers multiply its integers (`lowbit.evals.integer_model`).

    Raises:
      QuantizerError: inputs or weights that integers alone cannot multiply.
      FormatError: as `packed_predictor`.
    """
    kernels = integer_kernels(cfg, packed)
    multiplied = {packed_name(f"{path}/kernel", index) for path in LINEARS for index in range(cfg.num_layers)}
    rest = {name: tensor for name, tensor in packed.tensors.items() if name not in multiplied}
    params: dict[str, Any] = unflatten(unpack_params(cfg, dataclasses.replace(packed, tensors=rest)))
    rounding, _ = from_meta(packed.meta, cfg)
    hooks = rounding_hooks(ActivationRounding((), rounding.cache))
    model = Transformer(cfg, jnp.float32, hooks=hooks, dot_general=integer_product)
    return _of_model(model, {"params": params, PACKED: kernels}, packed.tokenizer, "integer")


def _of_model(model: Transformer, variables: Tree, tokenizer_files: Mapping[str, bytes], backend: str) -> Predictor:
    cfg = model.cfg
    place = functools.cache(functools.partial(_place, variables))

    def compiled(function: Callable[..., Any], batch: int) -> Callable[[NDArray[np.int32]], Any]:
        variables, by_rows = place(math.gcd(batch, jax.local_device_count()))
        program = jax.jit(function)
        return lambda tokens: program(variables, jax.device_put(tokens, by_rows))

    def make_nll(batch: int, length: int, separator: int | None) -> Nll:
        chunks = _chunks(length, batch * length * cfg.vocab_size)
        return compiled(nll_function(model.clone(separator=separator), chunks), batch)

    def make_scores(batch: int) -> Scores:
        return compiled(functools.partial(scores, model), batch)

    def make_logits(batch: int) -> Logits:
        return compiled(model.apply, batch)

    return Predictor(cfg, tokenizer_files, backend, make_nll, make_scores, make_logits)


def packed_predictor(cfg: LlamaConfig, packed: PackedModel) -> Predictor:
    """Returns a predictor of a packed file's decoded weights, with activations as the file says.

    Raises:
      FormatError: damaged codes, or a record of activations that cannot be read.
    """
    params: dict[str, Any] = unflatten(unpack_params(cfg, packed))
    return predictor(cfg, params, packed.tokenizer, *from_meta(packed.meta, cfg))


def pretrained_predictor(source: str) -> Predictor:
    """Returns a predictor of a float model as it is."""
    loaded = pretrained.load(source)
    return predictor(loaded.cfg, loaded.params, loaded.tokenizer_files)


def _place(variables: Tree, devices: int) -> tuple[Tree, NamedSharding]:
    mesh = Mesh(np.array(jax.local_devices()[:devices]), ("rows",))
    return jax.device_put(variables, NamedSharding(mesh, PartitionSpec())), NamedSharding(mesh, PartitionSpec("rows"))


def scores(model: Transformer, variables: Tree, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what `lowbit.evals.predictor.Scores` does, as a pure function of the model's variables."""
    outputs: Any = model.apply(variables, tokens[:, :-1], method="hidden_and_head")
    hidden, head = outputs
    b, t = tokens.shape[0], tokens.shape[1] - 1
    chunks = _chunks(t, b * t * model.cfg.vocab_size)

    def piece(states_and_targets: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, targets = states_and_targets
        product = jnp.matmul(rows(states), head, preferred_element_type=jnp.float32)
        logits = product.reshape(*targets.shape, head.shape[1])
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    nll, top = jax.lax.map(piece, (cut(hidden, chunks), cut(tokens[:, 1:], chunks)))
    return join(nll), join(top)


def _chunks(length: int, logits: int) -> int:
    """The fewest pieces of equal size that a sequence can be cut into so that a piece's logits fit."""
    return next(n for n in range(1, length + 1) if length % n == 0 and (logits <= n * LOGITS_AT_ONCE or n == length))
