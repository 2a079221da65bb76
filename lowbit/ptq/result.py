"""A quantized model put together: for evaluation, as a packed file, and as a run that training goes on from."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowbit.config import ConfigDict
from lowbit.errors import QuantizerError
from lowbit.export import pack_tensor
from lowbit.formats import PackedModel, StoredTensor
from lowbit.llama import LAYER_PREFIX, LlamaConfig
from lowbit.llama.activations import Ranges, to_meta
from lowbit.models.activations import range_variables
from lowbit.models.layerwise import LayerSource, outside_paths
from lowbit.numerics.quantizers import Quantizer, State, stored_as
from lowbit.ptq.activations import Activations
from lowbit.ptq.layers import QuantizedLayer
from lowbit.ptq.model import KERNELS
from lowbit.ptq.summary import Summary, Tally
from lowbit.ptq.target import Target
from lowbit.train.checkpoints import Progress, opened
from lowbit.train.quantization import quantization_rules
from lowbit.train.run_folder import RunFolder
from lowbit.train.state import TrainState, merge
from lowbit.tree import Rule, assign, fake_quant, flatten, init_state, unflatten

FLOAT_DTYPE = jnp.float16
"""What embedding, head, norms and biases are stored as."""


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """Everything that a method made of a model, in memory.

    Attributes:
      cfg: the model's sizes.
      params: float32 masters, layers stacked, numpy.
      rules: which parameter has which quantizer. A kernel that no quantizer holds has its rounded values as masters.
      state: {"quant", "grid"}, as `lowbit.tree.fake_quant` takes it.
      ranges: calibrated ranges of the inputs of linear layers, by their path; {} where there are none.
      summary: bits per weight and errors.
    """

    cfg: LlamaConfig
    params: dict[str, Any]
    rules: tuple[Rule[Any], ...]
    state: dict[str, Any]
    ranges: Ranges
    summary: Summary

    def decoded(self) -> dict[str, Any]:
        """Returns the parameters that the model computes with."""
        quantized = functools.partial(fake_quant, self.rules)
        alike = all(rule.value.at_layer is None for rule in self.rules)
        # Levels of their own in every matrix would make a program as long as the model.
        return (jax.jit(quantized) if alike else quantized)(self.params, self.state)


def assemble(source: LayerSource, layers: Iterable[QuantizedLayer], target: Target) -> QuantizedModel:
    """Returns the model whose layers are `layers`, whole and in float32; what lies outside of them is the source's."""
    cfg, tally = source.cfg, Tally(target)
    params: dict[str, Any] = {path: source.outside(path) for path in outside_paths(cfg)}
    for leaf in params.values():
        tally.add_float(leaf.size)
    quant: dict[str, Any] = {}
    ranges: dict[str, dict[str, np.ndarray]] = {}
    quantizers: dict[str, list[Quantizer | None]] = {path: [] for path in KERNELS}
    has_own_levels = False
    for index, layer in enumerate(layers):
        tally.add(layer)
        for path, leaf in layer.leaves.items():
            _put(params, f"layers/{path}", index, leaf, cfg.num_layers)
        _add_ranges(ranges, index, layer, cfg.num_layers)
        for path, kernel in layer.kernels.items():
            quantizers[path].append(kernel.quantizer(target))
            has_own_levels = has_own_levels or kernel.levels is not None
            for key, leaf in kernel.state.items():
                _put(quant, f"layers/{path}/{key}", index, leaf, cfg.num_layers)
    rules: list[Rule[Any]] = []
    for path, each in quantizers.items():
        own = [quantizer for quantizer in each if quantizer is not None]
        if own:
            differ = has_own_levels or any(quantizer is not own[0] for quantizer in own)
            rules.append(Rule(re.escape(f"layers/{path}"), _layered(own) if differ else own[0]))
    rules.append(Rule(".*", stored_as(FLOAT_DTYPE)))
    state = {"quant": unflatten({path: jnp.asarray(leaf) for path, leaf in quant.items()}), "grid": {}}
    return QuantizedModel(cfg, unflatten(params), tuple(rules), state, ranges, tally.summary(KERNELS))


def pack_layers(
    source: LayerSource,
    layers: Iterable[QuantizedLayer],
    target: Target,
    meta: Mapping[str, Any],
    activations: Activations | None = None,
) -> tuple[PackedModel, Summary]:
    """Returns what `pack_model` makes of `assemble`, with one layer at a time in float32; and its figures.

    Args:
      source: of what lies outside of the layers, and of the tokenizer.
      layers: in their order.
      target: that they were quantized to.
      meta: as `lowbit.export.pack_model` takes it.
      activations: how inputs are rounded, which the file's `meta` says beside `meta`.
    """
    cfg, tally = source.cfg, Tally(target)
    plain = stored_as(FLOAT_DTYPE)
    ranges: dict[str, dict[str, np.ndarray]] = {}
    tensors: dict[str, StoredTensor] = {}
    for path in outside_paths(cfg):
        leaf = source.outside(path)
        tally.add_float(leaf.size)
        tensors[path.replace("/", ".")] = pack_tensor(leaf, plain, {})
    for index, layer in enumerate(layers):
        tally.add(layer)
        _add_ranges(ranges, index, layer, cfg.num_layers)
        for path, leaf in layer.leaves.items():
            kernel = layer.kernels.get(path)
            quantizer = None if kernel is None else kernel.quantizer(target)
            name = f"layers.{index}.{path.replace('/', '.')}"
            if kernel is None or quantizer is None:
                tensors[name] = pack_tensor(leaf, plain, {})
            else:
                tensors[name] = pack_tensor(leaf, quantizer, kernel.state)
    said = dict(meta) if activations is None else {**meta, **to_meta(activations.rounding(), ranges)}
    return PackedModel(tensors, cfg.to_hf(), dict(source.tokenizer_files), said), tally.summary(KERNELS)


def _add_ranges(ranges: dict[str, dict[str, np.ndarray]], index: int, layer: QuantizedLayer, layers: int) -> None:
    """Writes a layer's calibrated ranges into their stacks, f32[L 1 1]."""
    for path, state in layer.inputs.items():
        own = ranges.setdefault(LAYER_PREFIX + path.removesuffix("/kernel"), {})
        for key, leaf in state.items():
            _put(own, key, index, leaf, layers)


def _put(stacked: dict[str, Any], path: str, index: int, leaf: np.ndarray, layers: int) -> None:
    """Writes a layer's leaf into the stack at `path`, which begins with the first."""
    if index == 0:
        stacked[path] = np.empty((layers, *leaf.shape), leaf.dtype)
    stacked[path][index] = leaf


def _layered(quantizers: Sequence[Quantizer]) -> Quantizer:
    """One quantizer for `[L k n]` whose layers have levels or widths of their own."""

    def init(w: jax.Array) -> State:
        states = [quantizer.init(w[i]) for i, quantizer in enumerate(quantizers)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def fake(w: jax.Array, state: State) -> jax.Array:
        return jnp.stack(
            [q.fake(w[i], {key: leaf[i] for key, leaf in state.items()}) for i, q in enumerate(quantizers)]
        )

    def encode(w: jax.Array, state: State) -> jax.Array:
        raise QuantizerError("layers with levels or widths of their own have no common grid", "encode layer by layer")

    first = quantizers[0]
    return Quantizer("own_levels", None, init, encode, fake, first.granularity, at_layer=lambda i: quantizers[i])


def write_run(model: QuantizedModel, folder: Path, config: ConfigDict, tokenizer_files: Mapping[str, bytes]) -> None:
    """Writes a run folder whose one checkpoint, of step 0, is the quantized model.

    Whatever takes a run takes it: eval, export, verify, and as `model.source` another run, which then begins with these
    masters, and with `model.source_scales` with these scales.

    Args:
      model: from `assemble`.
      folder: to write; it must not exist.
      config: of the run; its section `quant` names the grid of the model, and `activations` how inputs are rounded.
      tokenizer_files: by name.

    Raises:
      RunFolderError: the folder cannot be written.
      DiskFullError: there is no room.
    """
    rules = quantization_rules(config.quant)
    named, made = _names(rules, model), _names(model.rules, model)
    assert named == made, (named, made)
    run = RunFolder(folder)
    run.check(resume=False)
    run.create(config, model.cfg, tokenizer_files)
    variables = jax.device_put({"params": model.params, "quant": model.state["quant"]}, jax.local_devices()[0])
    state = TrainState.create(
        variables, {"grid": merge(_grids(rules, model), range_variables(model.ranges))}, optax.identity()
    )
    with opened(run.checkpoints) as checkpoints:
        checkpoints.save(state, Progress(0, 0, 0.0, ""), config)
        checkpoints.wait()


def _names(rules: Sequence[Rule[Any]], model: QuantizedModel) -> dict[str, tuple[str, ...]]:
    """The quantizers that rules give the layers of each parameter."""
    layers = range(model.cfg.num_layers)
    return {
        path: tuple(quantizer.layer(index).name for index in layers)
        for path, quantizer in assign(rules, flatten(model.params)).items()
    }


def _grids(rules: Sequence[Rule[Any]], model: QuantizedModel) -> dict[str, Any]:
    """The collection "grid" of quantizers whose layers differ in width; {} where none does."""
    if all(rule.value.at_layer is None for rule in rules):
        return {}
    # Compiled, nothing is computed of the scales that stand beside.
    return jax.jit(lambda params: init_state(rules, params)["grid"])(model.params)
