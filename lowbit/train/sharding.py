"""Where each array of a run lives on a (data, fsdp, tensor) mesh.

"data" repeats the model, "fsdp" cuts parameters and optimizer state along one axis and gathers them where they are
used, "tensor" cuts the heads and the hidden units of the MLP. A batch is cut over data and fsdp together.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lowbit.errors import ConfigError, nearest
from lowbit.models.placement import on_mesh
from lowbit.train.optimizers import leaf_paths, path_string
from lowbit.train.state import TrainState
from lowbit.train.step import TrainStep
from lowbit.tree.rules import Rule, lookup

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()
AnyMesh = Mesh | AbstractMesh
"""Devices, or the shape that devices elsewhere will have: what lies where is a matter of the shape alone."""

# Kernels [L k n] and what a quantizer keeps of them, [L g n], share a line: groups are cut as their inputs are. In
# "grid" that is what fixed codes were made with (the numbers of a traced grid are [L 1 1], and lie everywhere).
# The first matrix of a pair is cut along n by "tensor" and the second along k, so that between the two nothing moves.
PARTITION_RULES: tuple[Rule, ...] = (
    Rule(r"params/embed/embedding", PartitionSpec("tensor", "fsdp")),
    Rule(r"(quant|grid)/embed/embedding/\w+", PartitionSpec("fsdp", "tensor")),  # of the transposed array [d V]
    # Factors of adapters, [L k r] and [L r n], are cut as their matrix is, and never along their rank.
    Rule(r"quant/layers/(attn/[qkv]|mlp/(gate|up))_proj/kernel/a", PartitionSpec(None, "fsdp", None)),
    Rule(r"quant/layers/(attn/[qkv]|mlp/(gate|up))_proj/kernel/b", PartitionSpec(None, None, "tensor")),
    Rule(r"quant/layers/(attn/o|mlp/down)_proj/kernel/a", PartitionSpec(None, "tensor", None)),
    Rule(r"quant/layers/(attn/o|mlp/down)_proj/kernel/b", PartitionSpec(None, None, "fsdp")),
    Rule(r"quant/lm_head/kernel/a", PartitionSpec("fsdp", None)),
    Rule(r"quant/lm_head/kernel/b", PartitionSpec(None, "tensor")),
    Rule(
        r"(params|quant|grid)/layers/(attn/[qkv]|mlp/(gate|up))_proj/kernel(/\w+)*",
        PartitionSpec(None, "fsdp", "tensor"),
    ),
    Rule(r"(params|quant|grid)/layers/(attn/o|mlp/down)_proj/kernel(/\w+)*", PartitionSpec(None, "tensor", "fsdp")),
    Rule(r"params/layers/attn/[qkv]_proj/bias", PartitionSpec(None, "tensor")),
    Rule(r"(params|quant|grid)/lm_head/kernel(/\w+)?", PartitionSpec("fsdp", "tensor")),
    Rule(r"params/(layers/)?\w*norm/scale", REPLICATED),
    Rule(r"grid/.*", REPLICATED),
)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of `{"data": a, "fsdp": b, "tensor": c}`, where one size may be -1 for the rest.

    Raises:
      ConfigError: an unknown or missing axis, a size that is neither positive nor -1, or a product that is not
        the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    # GSPMD places what is in between; sharding-in-types would need every operation of the model to agree.
    return jax.make_mesh(
        mesh_shape(sizes, len(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def make_abstract_mesh(sizes: Mapping[str, int], count: int) -> AbstractMesh:
    """Returns the mesh that `make_mesh` would make of `count` devices, which need not be there; raises as it does."""
    return AbstractMesh(mesh_shape(sizes, count), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Returns the sizes of `AXES` on `count` devices; raises as `make_mesh` does."""
    for name in sizes:
        if name not in AXES:
            raise ConfigError(f"unknown mesh axis {name!r}", nearest(name, AXES))
    missing = [name for name in AXES if name not in sizes]
    if missing:
        raise ConfigError(f"the mesh has no axis {missing[0]!r}", f"give {missing[0]}=1 where it is not cut")
    shape = [int(sizes[name]) for name in AXES]
    given = math.prod(size for size in shape if size != -1)
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ConfigError(f"mesh {dict(sizes)} is no shape", "give positive sizes, and -1 at most once")
    if -1 in shape:
        shape[shape.index(-1)] = count // given
    if math.prod(shape) != count:
        raise ConfigError(
            f"mesh {dict(zip(AXES, shape, strict=True))} does not cover {count} devices",
            "make the product of the axes the number of devices; -1 takes what is left",
        )
    return tuple(shape)


def variable_shardings(mesh: AnyMesh, variables: Any, rules: Sequence[Rule] = PARTITION_RULES) -> Any:
    """Returns the NamedSharding of each leaf of a tree of collections ("params", "quant", "grid").

    Args:
      mesh: with the axes `AXES`.
      variables: arrays or their shapes.
      rules: PartitionSpec by path; not all need be used: the table serves every member of the family.

    Raises:
      RuleError: a path that no rule covers.
      ConfigError: an axis, or the groups along one, that the mesh does not divide.
    """

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        path = path_string(key_path)
        return NamedSharding(mesh, _fitted(mesh, path, np.shape(leaf), lookup(rules, path)))

    return jax.tree_util.tree_map_with_path(place, variables)


def state_shardings(mesh: AnyMesh, state: TrainState, rules: Sequence[Rule] = PARTITION_RULES) -> TrainState:
    """Returns the NamedSharding of each leaf of a state (arrays or shapes).

    What the optimizer keeps of a parameter, in its shape, lies where the parameter lies. Collections of `constants`
    other than those of the model hold another model's parameters (a teacher's), and lie as parameters do. Raises as
    `variable_shardings` does.
    """
    whole = NamedSharding(mesh, REPLICATED)
    params = variable_shardings(mesh, state.params, rules)
    own = {name: tree for name, tree in state.constants.items() if name in ("params", "quant", "grid")}
    others = {name: tree for name, tree in state.constants.items() if name not in own}
    constants = variable_shardings(mesh, own, rules) | {
        name: variable_shardings(mesh, {"params": tree}, rules)["params"] for name, tree in others.items()
    }
    of_param = {
        path: (np.shape(leaf), sharding)
        for path, leaf, sharding in zip(
            leaf_paths(state.params), jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
        )
    }

    def beside_its_parameter(key_path: Any, leaf: Any) -> NamedSharding:
        parts = path_string(key_path).split("/")
        for start in range(len(parts)):
            shape, sharding = of_param.get("/".join(parts[start:]), (None, whole))
            if shape == np.shape(leaf):
                return sharding
        return whole

    opt_state = jax.tree_util.tree_map_with_path(beside_its_parameter, state.opt_state)
    return TrainState(whole, params, constants, opt_state)


def shard_state(state: TrainState, shardings: TrainState) -> TrainState:
    """Returns the state with each array on its devices."""
    return jax.device_put(state, shardings)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process reads the index-th of count equal shares of each batch.

    Processes between which "tensor" cuts the model hold the same rows, and read the same share. A share need not lie
    in one piece of the global batch: devices are numbered as their network is, and a mean over rows knows no order.

    Raises:
      ConfigError: the processes' rows overlap in part, so that there are no equal shares.
    """
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    shares = _shares(owners.reshape(-1, owners.shape[-1]))
    own = shares[jax.process_index()]
    different = sorted(set(shares.values()))
    return different.index(own), len(different)


def shard_batch(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Returns a global batch i32[b t+1] from this process's share of its rows, as `batch_share` has it."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), rows)


def put_whole(value: np.ndarray, place: NamedSharding) -> jax.Array:
    """Returns the global array of a value that every process holds whole: each puts what its devices need."""
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index])


def check_batch(mesh: AnyMesh, batch_size: int, accumulate: int) -> None:
    """Raises ConfigError unless each of the `accumulate` parts of a batch divides among the mesh's rows."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if accumulate < 1 or batch_size % (accumulate * rows):
        raise ConfigError(
            f"a batch of {batch_size} sequences cannot be cut into {accumulate} parts over {rows} devices",
            f"make train.batch_size a multiple of {max(accumulate, 1) * rows}",
        )


def jit_train_step(step: TrainStep, mesh: Mesh, shardings: TrainState) -> TrainStep:
    """Returns the step compiled for a mesh; the state passed in is consumed, metrics come back replicated."""
    batch = NamedSharding(mesh, BATCH)
    return jax.jit(
        on_mesh(mesh, step),
        in_shardings=(shardings, batch),
        out_shardings=(shardings, NamedSharding(mesh, REPLICATED)),
        donate_argnums=0,
    )


def _shares(owners: np.ndarray) -> dict[int, tuple[int, ...]]:
    """The rows that each process holds, from the processes of the devices [rows, tensor]."""
    held = {int(p): tuple(np.flatnonzero((owners == p).any(axis=1)).tolist()) for p in np.unique(owners)}
    different = set(held.values())
    if sum(map(len, different)) > len(owners) or len({len(rows) for rows in different}) > 1:
        raise ConfigError(
            f"the mesh gives its {len(held)} processes rows of a batch that overlap in part",
            "choose a size of mesh.tensor that divides the devices of a process, or is a multiple of their number",
        )
    return held


def _fitted(mesh: AnyMesh, path: str, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    if len(spec) > len(shape):
        raise ConfigError(f"{path} of shape {shape} cannot be cut as {spec}", "mend the partition rules")
    is_scale = path.startswith(("quant/", "grid/"))
    axes: list[str | None] = []
    for dim, (size, axis) in enumerate(zip(shape, spec, strict=False)):
        if axis is None or (is_scale and size == 1):  # one scale for all of an axis: every shard has it
            axes.append(None)
            continue
        pieces = mesh.shape[axis]
        if size % pieces:
            grouped = is_scale and dim == len(shape) - 2
            what = f"{size} groups" if grouped else f"axis {dim} ({size} long)"
            why = ": a group would lie on two devices" if grouped else ""
            raise ConfigError(
                f"{path} of shape {shape}: {what} cannot be cut {pieces} ways along mesh axis {axis!r}{why}",
                f"choose a size of mesh.{axis} that divides {size}" + (", or another group size" if grouped else ""),
            )
        axes.append(axis)
    return PartitionSpec(*axes)
