"""A whole model, layer after layer, each seeing what the quantized layers before it give."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.errors import QuantizerError
from lowbit.llama import LlamaConfig
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.models.layerwise import LayerSource
from lowbit.ptq.activations import Activations, input_states
from lowbit.ptq.calibration import Calibration, Devices, embedded
from lowbit.ptq.gptq import check_valid
from lowbit.ptq.layers import FinishedLayers, QuantizedKernel, QuantizedLayer
from lowbit.ptq.method import Method, Options, Rounded
from lowbit.ptq.methods import check
from lowbit.ptq.moments import Moments, advance, attention_weights, moments, output_error
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target
from lowbit.ptq.widths import Widths
from lowbit.train.quantization import EMBEDDING
from lowbit.train.teacher import fingerprint
from lowbit.tree import unflatten
from lowbit.version import __version__

KERNELS = tuple(path for stage in LINEAR_STAGES for path in stage)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides what a model is quantized to.

    Attributes:
      method: how.
      target: to what; its width is that of all kernels, or where they have `widths` of their own of none.
      options: of the method.
      calibration: what it looks at; None for a method that needs no data.
      activations: how the inputs of the kernels are rounded; None leaves them float.
      widths: of each kernel; None gives all of them the target's.
    """

    method: Method
    target: Target
    options: Options
    calibration: Calibration | None
    activations: Activations | None = None
    widths: Widths | None = None

    def target_at(self, layer: int, path: str) -> Target:
        """Returns what one kernel becomes."""
        return self.target if self.widths is None else self.target.at(self.widths.at(layer, path))

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without calibration."""
        return self.method.needs_data or (self.activations is not None and self.activations.is_static)

    def check(self, cfg: LlamaConfig) -> None:
        """Refuses what cannot be, before any work.

        Raises:
          QuantizerError: see `methods.check` and `Widths.check`.
          DataError: see `Calibration.check`.
        """
        if cfg.linear_norm and self.method.fold is not None:
            raise QuantizerError(
                f"{self.method.name} folds scales through products that this model normalizes",
                "take a method that folds nothing, such as gptq",
            )
        inputs = (cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.intermediate_size)
        if self.widths is not None:
            self.widths.check(cfg.num_layers)
        for bits in (self.target.bits,) if self.widths is None else self.widths.used:
            check(self.method, self.target.at(bits), self.options, inputs)
        if self.calibration is not None:
            self.calibration.check(cfg)
        elif self.needs_data:
            who = self.method.name if self.method.needs_data else "a static range of activations"
            raise QuantizerError(
                f"{who} looks at what a model computes, and there is no calibration data",
                "give some text or tokens, or take rtn, hqq or kmeans and no static activations: they need none",
            )

    def section(self) -> dict[str, Any]:
        """Returns what the section `quant` of a config says of the result.

        Raises:
          QuantizerError: no config can say it.
        """
        section = self.target.section()
        if section is None:
            raise QuantizerError(
                f"training has no quantizer with the grid {self.target.grid!r}", "write a packed file, which holds any"
            )
        return section if self.widths is None else {**section, "overrides": self.widths.overrides(self.target)}

    def record(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        options = dataclasses.asdict(self.options)
        return {
            "method": self.method.name,
            "grid": self.target.grid,
            "bits": float(self.target.bits) if self.widths is None else None,
            "widths": None if self.widths is None else {path: list(w) for path, w in self.widths.by_path.items()},
            "granularity": self.target.granularity,
            "range": self.target.range,
            "double_quant": self.target.doubled,
            "options": {name: options[name] for name in self.method.options},
            "calibration": None if self.calibration is None else self.calibration.record(),
            "activations": None if self.activations is None else dataclasses.asdict(self.activations),
        }


def quantize_layers(
    source: LayerSource,
    plan: Plan,
    *,
    finished: Path | None = None,
    origin: str = "",
    progress: Callable[[int, float], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterable[QuantizedLayer]:
    """Quantizes every layer, one in memory at a time.

    Args:
      source: the float model, asked for one layer after another.
      plan: method, target, calibration.
      finished: folder in which finished layers are kept and found again; None keeps none, but all in memory.
      origin: where the model comes from, which the settings beside finished layers name.
      progress: called after each layer with its index and the seconds it took.
      devices: over which the rows of calibration are spread; None takes all of this process.

    Returns:
      The layers in their order; those in a folder are read from there, each time anew.

    Raises:
      LowbitError: as `Plan.check`, before any work.
      RunFolderError: `finished` holds layers of other parameters, settings or another version.
      QuantizerError: a Hessian that cannot be factored; the message names its kernel.
    """
    cfg = source.cfg
    plan.check(cfg)
    store = None
    if finished is not None:
        settings = {
            **plan.record(),
            "origin": origin,
            "model": dataclasses.asdict(cfg),
            # The same path may hold another checkpoint by now (each layer has a fingerprint as well), and another
            # version may round otherwise.
            "embedding": fingerprint({EMBEDDING: source.outside(EMBEDDING)}),
            "version": __version__,
        }
        store = FinishedLayers(finished, settings, cfg.num_layers)
    walk = _Walk(source, plan, Devices.of(jax.local_devices() if devices is None else devices))
    layers = []
    for index in range(cfg.num_layers):
        began = time.monotonic()
        flat = source.layer(index)
        of_float = "" if store is None else fingerprint(flat)
        layer = None if store is None else store.read(index, of_float)
        if layer is None:
            layer = walk.quantize(flat, index)
            if store is not None:
                store.write(index, layer, of_float)
        if index + 1 < cfg.num_layers:
            walk.step(flat, layer)
        if store is None:
            layers.append(layer)
        if progress is not None:
            progress(index, time.monotonic() - began)
    return layers if store is None else store


class _Walk:
    """Activations on their way through the model, quantized and, where a method compares, float."""

    def __init__(self, source: LayerSource, plan: Plan, devices: Devices):
        self.cfg, self.plan, self.devices = source.cfg, plan, devices
        self.hidden: jax.Array | None = None
        self.float_hidden: jax.Array | None = None
        self.weights: jax.Array | None = None
        if plan.calibration is not None:
            embedding = source.outside(EMBEDDING)
            self.hidden = embedded(embedding, plan.calibration, devices)
            if plan.method.follows_float:
                self.float_hidden = embedded(embedding, plan.calibration, devices)

    def quantize(self, original: dict[str, np.ndarray], index: int) -> QuantizedLayer:
        """Returns one layer, quantized stage by stage."""
        method, options = self.plan.method, self.plan.options
        targets = {path: self.plan.target_at(index, path) for path in KERNELS}
        flat = jax.device_put(original, self.devices.first)
        if "token_weights" in method.options and options.token_weights == "attention":
            self.weights = self.attention_weights(flat)
        if method.fold is not None:
            seen = {stage[0]: self.moments(stage[0], flat, flat) for stage in LINEAR_STAGES}
            flat = method.fold(flat, seen, targets, options, self.cfg.num_heads == self.cfg.num_kv_heads)
        if method.learn is not None:
            return self.learned(flat, targets, index)
        float_flat = flat
        leaves, kernels = dict(flat), {}
        for stage in LINEAR_STAGES:
            known = self.moments(stage[0], flat, float_flat) if method.reads_moments else None
            for path in stage:
                w = float_flat[path]
                rounded = method.round(path, w, known, targets[path], options)
                if rounded.valid is not None:
                    check_valid(rounded.valid, f"{path} of layer {index}", options)
                flat = {**flat, path: rounded.w_hat}
                leaves[path] = rounded.masters
                kernels[path] = _kept(rounded, w, known, targets[path], self.plan.widths is not None)
        layer = QuantizedLayer({path: np.asarray(leaf) for path, leaf in leaves.items()}, kernels)
        return dataclasses.replace(layer, inputs=self.input_states(layer))

    def learned(self, flat: dict[str, jax.Array], targets: dict[str, Target], index: int) -> QuantizedLayer:
        """Returns one layer whose kernels learn together, with their errors on the inputs that they then have."""
        learn, options = self.plan.method.learn, self.plan.options
        assert learn is not None
        assert self.hidden is not None
        assert self.float_hidden is not None
        everywhere = self.devices.everywhere
        made = learn(
            self.cfg,
            f"layer {index}",
            jax.device_put(flat, everywhere),
            self.hidden,
            self.float_hidden,
            targets,
            options,
        )
        rounded = {path: jax.device_put(each.w_hat, self.devices.first) for path, each in made.items()}
        block, kernels = jax.device_put(unflatten({**flat, **rounded}), everywhere), {}
        for stage in LINEAR_STAGES:
            known = jax.device_put(moments(self.cfg, stage[0], block, self.hidden), self.devices.first)
            for path in stage:
                each, own_width = made[path]._replace(w_hat=rounded[path]), self.plan.widths is not None
                kernels[path] = _kept(each, flat[path], known, targets[path], own_width)
        leaves = {**flat, **{path: each.masters for path, each in made.items()}}
        layer = QuantizedLayer({path: np.asarray(leaf) for path, leaf in leaves.items()}, kernels)
        return dataclasses.replace(layer, inputs=self.input_states(layer))

    def attention_weights(self, flat: dict[str, Any]) -> jax.Array:
        """How much each token counts in a layer that is not quantized yet."""
        assert self.hidden is not None
        return attention_weights(self.cfg, jax.device_put(unflatten(flat), self.devices.everywhere), self.hidden)

    def moments(self, path: str, flat: dict[str, Any], float_flat: dict[str, Any]) -> Moments:
        """The moments of the inputs of one stage."""
        assert self.hidden is not None
        block = jax.device_put(unflatten(flat), self.devices.everywhere)
        if self.float_hidden is None:
            found = moments(self.cfg, path, block, self.hidden, weights=self.weights)
        else:
            float_block = jax.device_put(unflatten(float_flat), self.devices.everywhere)
            found = moments(self.cfg, path, block, self.hidden, float_block, self.float_hidden, self.weights)
        return jax.device_put(found, self.devices.first)

    def input_states(self, layer: QuantizedLayer) -> dict[str, dict[str, np.ndarray]]:
        """The calibrated ranges of the inputs of a finished layer; {} where there are none."""
        activations = self.plan.activations
        if activations is None or not activations.is_static:
            return {}
        assert self.hidden is not None
        block = jax.device_put(unflatten(layer.decoded(self.plan.target)), self.devices.everywhere)
        return input_states(self.cfg, block, self.hidden, activations)

    def step(self, original: dict[str, np.ndarray], layer: QuantizedLayer) -> None:
        """Goes on to the inputs of the next layer."""
        if self.hidden is None:
            return
        block = jax.device_put(unflatten(layer.decoded(self.plan.target)), self.devices.everywhere)
        self.hidden = advance(self.cfg, block, self.hidden)
        if self.float_hidden is not None:
            block = jax.device_put(unflatten(original), self.devices.everywhere)
            self.float_hidden = advance(self.cfg, block, self.float_hidden)


def _kept(
    rounded: Rounded, w: jax.Array, known: Moments | None, target: Target, has_own_width: bool
) -> QuantizedKernel:
    error = relative_error(w, rounded.w_hat, None if known is None else known.gram)
    levels = None
    if rounded.quantizer is not None and rounded.quantizer is not target.quantizer:
        assert rounded.quantizer.grid is not None
        levels = (rounded.quantizer.grid.name, rounded.quantizer.grid.levels)
    state = {key: np.asarray(leaf) for key, leaf in rounded.state.items()}
    width = target.bits if has_own_width else None
    return QuantizedKernel(state, levels, rounded.bits, float(error), width)


@jit
def relative_error(w: jax.Array, w_hat: jax.Array, gram: jax.Array | None) -> jax.Array:
    """Returns |x (w - w_hat)|^2 / |x w|^2 over inputs of second moments `gram` [k k]; of the weights for None."""
    if gram is None:
        return jnp.sum(jnp.square(w - w_hat)) / jnp.sum(jnp.square(w))
    return jnp.sum(output_error(gram, w - w_hat)) / jnp.sum(output_error(gram, w))
