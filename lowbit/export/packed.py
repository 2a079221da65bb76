"""Parameters, rules and quantizer state -> a packed model."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.errors import ModelError
from lowbit.formats import Adapter, BFloat16, CodedScale, PackedModel, PackedTensor, StoredTensor, decode
from lowbit.llama import LAYER_PREFIX, LlamaConfig
from lowbit.llama.activations import from_meta
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import Quantizer
from lowbit.tree import flatten, resolve
from lowbit.tree.apply import QuantizerRule, state_at
from lowbit.tree.paths import Tree


def pack_model(
    cfg: LlamaConfig,
    params: Tree,
    rules: Sequence[QuantizerRule],
    state: Mapping[str, Tree],
    tokenizer_files: Mapping[str, bytes],
    meta: Mapping[str, Any],
) -> PackedModel:
    """Encodes every parameter as its quantizer says, and names the tensors as the file does.

    Args:
      cfg: the model's sizes; written as a Hugging Face config.
      params: masters, layers stacked.
      rules: which parameter has which quantizer; None keeps float32.
      state: `{"quant", "grid"}`, from `tree.init_state` or from training.
      tokenizer_files: by name; may be empty.
      meta: anything else worth keeping that JSON can say.

    Returns:
      The model; `lowbit.formats.write` makes the file.

    Raises:
      RuleError: the rules do not fit the parameters.
    """
    flat = flatten(params)
    tensors: dict[str, StoredTensor] = {}
    for path, quantizer in resolve(rules, params).items():
        w, own = jnp.asarray(flat[path]), state_at(state, path)
        name = path.replace("/", ".")
        if not path.startswith(LAYER_PREFIX):
            tensors[name] = _stored(_encode(w, quantizer, own))
            continue
        _, rest = name.split(".", 1)
        mixed = quantizer is not None and quantizer.at_layer is not None
        together = None if mixed else _encode(w, quantizer, own)
        for index in range(w.shape[0]):
            at_index = functools.partial(_at, index)
            if quantizer is not None and mixed:
                kept = _encode(w[index], quantizer.layer(index), jax.tree.map(at_index, own))
            else:
                kept = jax.tree.map(at_index, together)
            tensors[f"layers.{index}.{rest}"] = _stored(kept)
    return PackedModel(tensors, cfg.to_hf(), dict(tokenizer_files), dict(meta))


def pack_tensor(w: np.ndarray, quantizer: Quantizer, state: Mapping[str, Any]) -> StoredTensor:
    """Returns what a file holds of one matrix or vector, without a layer axis.

    Args:
      w: float32 masters.
      quantizer: of codes, or `stored_as` a float.
      state: of the quantizer; empty for one that has none.
    """
    own = {key: jnp.asarray(leaf) for key, leaf in state.items()}
    return _stored(_encode(jnp.asarray(w), quantizer, own))


def _at(index: int, leaf: jax.Array) -> jax.Array:
    return leaf[index]


def _encode(w: jax.Array, quantizer: Quantizer | None, state: dict[str, Any]) -> QTensor | jax.Array:
    if quantizer is None:
        return w.astype(jnp.float32)
    return quantizer.encode(w, quantizer.state_of(w, state))


def _stored(kept: QTensor | jax.Array) -> StoredTensor:
    """The same tensor in the types of the file."""
    if isinstance(kept, QTensor):
        return PackedTensor.from_codes(
            np.asarray(kept.codes),
            _as_numpy_scale(kept.scale),
            kept.grid.table(),
            kept.grid.name,
            zero=None if kept.zero is None else _as_numpy_scale(kept.zero),
            transposed=kept.transposed,
            in_scale=None if kept.in_scale is None else _as_numpy_scale(kept.in_scale).reshape(-1),
            adapter=None if kept.adapter is None else Adapter(*map(np.asarray, kept.adapter)),
            coded_scale=None if kept.coded_scale is None else CodedScale(*map(np.asarray, kept.coded_scale)),
        )
    if kept.dtype == jnp.bfloat16:
        return BFloat16(np.asarray(kept).view(np.uint16))
    return np.asarray(kept)


def _as_numpy_scale(scale: jax.Array) -> np.ndarray:
    """Scales are float16 or float32 in a file; a bfloat16 one widens to float32 without loss."""
    return np.asarray(scale.astype(jnp.float32) if scale.dtype == jnp.bfloat16 else scale)


def check_standard(cfg: LlamaConfig, meta: Mapping[str, Any], engine: str) -> None:
    """Refuses what only this package computes.

    Raises:
      ModelError: the config has a norm behind every linear layer, or the `meta` says that activations are rounded.
      FormatError: a record of activations that cannot be read.
    """
    if cfg.linear_norm:
        raise ModelError(
            f"the model has a norm behind every linear layer, which {engine} does not compute",
            "run the packed file itself, or train without model.linear_norm",
        )
    rounding, _ = from_meta(meta, cfg)
    if rounding:
        raise ModelError(
            f"the model was made for {rounding.described()}, which {engine} does not compute",
            "run the packed file itself, or make the model without rounding of activations",
        )


def unpack_params(cfg: LlamaConfig, packed: PackedModel) -> dict[str, np.ndarray]:
    """Decodes a packed model to `{path: float32 array}`, layers stacked again; the inverse naming of `pack_model`.

    Raises:
      FormatError: damaged codes.
    """
    flat: dict[str, Any] = {}
    for name, tensor in packed.tensors.items():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            flat.setdefault(LAYER_PREFIX + rest.replace(".", "/"), [None] * cfg.num_layers)[int(index)] = decode(tensor)
        else:
            flat[name.replace(".", "/")] = decode(tensor)
    return {path: np.stack(value) if isinstance(value, list) else value for path, value in flat.items()}
