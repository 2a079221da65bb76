"""What a train step needs of one device's memory: counted from shapes alone, or as the compiler states it.

Counting needs neither devices nor a compilation. The state is counted leaf by leaf as the partition rules lay it out.
What the backward pass finds of the forward pass is read off the traced step itself (`jax.vjp` on shapes), for the part
of the model and of the batch that one device holds. What lives for moments only, in a layer or the loss, is modelled.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lowbit.config import ConfigDict
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.train import sharding
from lowbit.train.blueprint import abstract_batch, blueprint, check_fit
from lowbit.train.setup import Experiment
from lowbit.train.state import Tree, merge

FLOAT_BYTES = 4
UPDATE_COPIES = {"adamw": 2, "muon": 3}
"""By optimizer: float32 copies of what is trained that its update holds, gradients among them."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      masters: float32 parameters.
      scales: what quantizers learn, and their constants.
      optimizer: what it keeps of each parameter.
      teacher: a teacher's parameters.
      batch: tokens.
      gradients: float32, of everything trained; twice where they are accumulated.
      activations: what the forward pass leaves for the backward pass, for one of the batch's parts.
      layer: what the backward pass holds of the one layer it is in.
      loss: logits of one chunk with their gradient, and the head.
      update: gradients, and what the optimizer makes of them before it is added to the parameters.
    """

    masters: int
    scales: int
    optimizer: int
    teacher: int
    batch: int
    gradients: int
    activations: int
    layer: int
    loss: int
    update: int

    @property
    def state(self) -> int:
        """What lies there between two steps."""
        return self.masters + self.scales + self.optimizer + self.teacher

    @property
    def peak(self) -> int:
        """The most that is there at once: in the backward pass of a layer, in the loss, or in the update."""
        pass_through = self.activations + max(self.gradients + self.layer, self.loss)
        return self.state + self.batch + max(pass_through, self.update)


def count_memory(
    config: ConfigDict,
    cfg: LlamaConfig,
    mesh: sharding.AnyMesh,
    teacher: LlamaConfig | None = None,
    fused_attention: bool = False,
) -> Memory:
    """Counts what one device of a mesh needs.

    Args:
      config: of the run.
      cfg: the model's sizes.
      mesh: devices, which need not be there.
      teacher: a teacher's sizes.
      fused_attention: whether attention never writes its scores [b heads t t], as cuDNN's kernel does not.

    Raises:
      LowbitError: as `prepare`, of everything that needs neither weights nor files.
    """
    check_fit(config, cfg, mesh)
    traced = config.copy_and_resolve_references()
    traced.model.attention = "xla"  # the only one that can be traced anywhere
    alone = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    experiment = blueprint(traced, cfg, alone, teacher)
    state = jax.eval_shape(experiment.make_state, experiment.params)
    places = sharding.state_shardings(mesh, state)
    trained = {name: _placed_bytes(tree, places.params[name]) for name, tree in state.params.items()}
    masters, scales = (trained.pop(name, 0) for name in ("params", "quant"))
    constants = {name: _placed_bytes(tree, places.constants[name]) for name, tree in state.constants.items()}
    fixed, fixed_scales = (constants.pop(name, 0) for name in ("params", "quant"))

    rows, pieces = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    traced.train.batch_size //= rows * config.train.accumulate
    traced.train.accumulate = 1
    own, taught = _piece(cfg, pieces), None if teacher is None else _piece(teacher, pieces)
    kept = _residuals(blueprint(traced, own, alone, taught), fused_attention)
    saved = _of_a_layer(kept, cfg.num_layers)
    loss = _loss_bytes(traced, own, with_teacher=teacher is not None)
    fused = _fused_bytes(traced, own) if fused_attention and config.model.remat == "dots" else 0
    traced.model.remat = "none"
    everything = _of_a_layer(_residuals(blueprint(traced, own, alone, taught), fused_attention), cfg.num_layers)
    # What was not saved is there again while a layer is worked backwards; half of it is about what gradients of
    # activations take where nothing needs to be computed again.
    layer = max(everything - saved, everything // 2)
    if mesh.shape["fsdp"] > 1:  # the weights of a layer, gathered, and their gradient before it is scattered
        layer += 2 * FLOAT_BYTES * _layer_weights(own)
    return Memory(
        masters=masters + fixed,
        scales=scales + fixed_scales + constants.pop("grid", 0),
        optimizer=_placed_bytes(state.opt_state, places.opt_state),
        teacher=sum(constants.values()),
        batch=FLOAT_BYTES * (config.train.batch_size // rows) * (config.train.sequence_length + 1),
        gradients=(masters + scales) * (2 if config.train.accumulate > 1 else 1),
        activations=sum(map(_leaf_bytes, kept)) + fused,
        layer=layer,
        loss=loss,
        update=(masters + scales) * UPDATE_COPIES[config.optimizer.name],
    )


def compiled_memory(compiled: Any) -> dict[str, int]:
    """Returns bytes a device of a compiled program as XLA states them.

    "arguments", "outputs", the part of these "aliased" with arguments, "temporaries" (the most that is between them at
    once), "code", and "total", all of it together.
    """
    stats = compiled.memory_analysis()
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return sizes | {"total": sum(sizes.values()) - 2 * sizes["aliased"]}


def _piece(cfg: LlamaConfig, pieces: int) -> LlamaConfig:
    """What one of `pieces` devices along the tensor axis holds of a model, as a model of its own."""
    return dataclasses.replace(
        cfg,
        num_heads=cfg.num_heads // pieces,
        num_kv_heads=cfg.num_kv_heads // pieces,
        intermediate_size=cfg.intermediate_size // pieces,
        vocab_size=cfg.vocab_size // pieces,
    )


def _residuals(experiment: Experiment, fused_attention: bool) -> list[Any]:
    """Shapes of what the forward pass of the objective leaves for its backward pass, beside its own arguments."""
    state = jax.eval_shape(experiment.make_state, experiment.params)

    def backward_of(params: Tree, constants: Tree, batch: jax.Array) -> Any:
        return jax.vjp(lambda p: experiment.objective(merge(p, constants), batch)[0], params)[1]

    program = jax.make_jaxpr(backward_of)(state.params, state.constants, abstract_batch(experiment)).jaxpr
    arguments = {id(variable) for variable in program.invars}
    kept = {id(v): v.aval for v in program.outvars if id(v) not in arguments}
    length = experiment.config.train.sequence_length
    scores = (length, length)
    return [leaf for leaf in kept.values() if not (fused_attention and leaf.ndim > 3 and leaf.shape[-2:] == scores)]


def _fused_bytes(config: ConfigDict, cfg: LlamaConfig) -> int:
    """What the remat policy "dots" keeps of fused attention: its result, and a float32 sum for each query."""
    heads = cfg.num_layers * config.train.batch_size * config.train.sequence_length * cfg.num_heads
    return heads * (cfg.head_dim * np.dtype(config.model.compute_dtype).itemsize + FLOAT_BYTES)


def _of_a_layer(leaves: Sequence[Any], layers: int) -> int:
    """Bytes that one layer leaves: what a scan over layers keeps is stacked."""
    return sum(_leaf_bytes(leaf) for leaf in leaves if leaf.ndim > 2 and leaf.shape[0] == layers) // layers


def _layer_weights(cfg: LlamaConfig) -> int:
    return sum(math.prod(shape[1:]) for path, shape in param_shapes(cfg).items() if path.startswith(LAYER_PREFIX))


def _loss_bytes(config: ConfigDict, cfg: LlamaConfig, with_teacher: bool) -> int:
    """Logits in float32 (of the teacher too), their gradient and the head in compute dtype, the table in float32."""
    narrow = np.dtype(config.model.compute_dtype).itemsize
    positions = config.train.batch_size * config.train.sequence_length // config.train.loss_chunks
    logits = positions * cfg.vocab_size * (FLOAT_BYTES * (2 if with_teacher else 1) + narrow)
    return logits + cfg.vocab_size * cfg.hidden_size * (FLOAT_BYTES + narrow)


def _placed_bytes(tree: Any, places: Any) -> int:
    """Bytes of the shards of a tree (shapes) that one device holds."""

    def held(leaf: Any, place: Any) -> int:
        return math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, tree, places)))


def _leaf_bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
