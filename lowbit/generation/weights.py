"""A model's weights on the device, as floats of the compute dtype or packed as in the file."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lowbit.errors import ConfigError, ModelError, QuantizerError, nearest
from lowbit.formats import PackedModel, PackedTensor, decode
from lowbit.generation.floats import FloatMatrix, OwnLayers, lay_out
from lowbit.generation.joined import Columns, Joined, families, join, may_be_joined
from lowbit.generation.packed import PackedWeight, for_gpu
from lowbit.kernels import unstacked_shapes
from lowbit.llama import FLOAT_ACTIVATIONS, LAYER_PREFIX, ActivationRounding, LlamaConfig, param_shapes
from lowbit.llama.activations import Ranges, from_meta
from lowbit.models.activations import range_variables
from lowbit.models.packed import packed_name
from lowbit.models.stacking import is_transposed, layer_names
from lowbit.numerics.low_rank import Factors
from lowbit.pallas import GpuWeight, kernel_runs_here
from lowbit.tree import flatten, unflatten
from lowbit.tree.paths import Tree

EMBEDDING, HEAD = "embed/embedding", "lm_head/kernel"

Kernels = Literal["auto", "gpu", "xla"]
"""What multiplies: "gpu" lays matrices out anew, packed ones for `lowbit.pallas` and floats as `floats.lay_out` does;
"xla" is plain XLA, from the file's bytes and from stacks of floats."""


class Weights(NamedTuple):
    """What a decoder multiplies by.

    Attributes:
      layers: {"params", "packed", "stacked", "grid"}, and "joined", a tuple of `Joined`: what `variables` and
        `by_layer` are made of; "grid" are calibrated ranges of the inputs of layers. "apart", a tuple, has "params" of
        each layer once more, as arrays of its own: norms, where matrices are laid out.
      embedding: [V d] in the compute dtype, or packed with an output a token.
      head: [d V] in the compute dtype, packed, or None where the embedding is the head as well.
    """

    layers: dict[str, Any]
    embedding: Any
    head: Any

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    @property
    def loops(self) -> bool:
        """Whether a loop over the layers can find what each of them multiplies by."""
        return not any(isinstance(_whole(w), OwnLayers) for w in self.stacks().values())

    def variables(self) -> dict[str, Any]:
        """Returns the variables of `CachedLayers`: `layers`, with the number of each layer beside what is stacked.

        For use in a compiled program, where all numbers are one array, and a joined matrix is one for all of its parts.
        As arguments they would be one for each matrix: a GPU would start a kernel for each of them to take out the
        number of the layer that it is at, and the compiler could not know that products are equal.
        """
        packed, stacked = flatten(self.layers["packed"]), self.stacks()
        for path, w in stacked.items():
            packed[path] = jnp.asarray(np.arange(len(_whole(w).scale), dtype=np.int32))
        parts = {"packed": unflatten(packed), "stacked": unflatten(stacked)}
        return {**{name: self.layers[name] for name in ("params", "grid")}, **parts}

    def by_layer(self, count: int) -> list[dict[str, Any]]:
        """Returns the variables of each of so many layers on its own, for use in a compiled program."""
        found, stacked = [], self.stacks()
        for number in range(count):
            own = {name: _cut(self.layers[name], number) for name in ("grid", "packed")}
            apart = self.layers["apart"]
            own["params"] = apart[number] if apart else _cut(self.layers["params"], number)
            packed = flatten(own["packed"])
            for path, w in stacked.items():
                at = number if isinstance(_whole(w), OwnLayers) else np.int32(number)
                packed[path.removeprefix(LAYER_PREFIX)] = w.of_layer(at)
            found.append(own | {"packed": unflatten(packed)})
        return found

    def stacks(self) -> dict[str, Any]:
        """Returns what knows its layers itself, by the path of the kernel."""
        stacked = flatten(self.layers["stacked"])
        for joined in self.layers["joined"]:
            stacked |= joined.columns()
        return stacked


def _whole(w: Any) -> Any:
    return w.whole if isinstance(w, Columns) else w


def _cut(tree: Tree, layer: int) -> Tree:
    """One layer of what is stacked under "layers"."""
    own: Tree = jax.tree.map(lambda leaf: leaf[layer], tree.get("layers", {}))
    return own


def from_params(
    params: Tree,
    dtype: DTypeLike,
    ranges: Ranges | None = None,
    *,
    rounding: ActivationRounding = FLOAT_ACTIVATIONS,
    kernels: str = "auto",
) -> Weights:
    """Returns the weights of a float parameter tree, fake-quantized or not; matrices are cast to `dtype` once.

    Args:
      params: what is computed with.
      dtype: of matrices.
      ranges: calibrated ones that `rounding` asks for.
      rounding: of the inputs of layers: matrices whose inputs are rounded apart are not joined.
      kernels: "gpu" or "xla", see `Kernels`; "auto" is the first on a GPU that `lowbit.pallas` was made for.

    Raises:
      ConfigError: unknown kernels.
    """
    _check(kernels)
    given = flatten(params)
    flat: dict[str, Any] = {}
    joined: list[Joined] = []
    lays_out = kernels == "gpu" or (kernels == "auto" and kernel_runs_here())
    for family in families(given):
        members = {path: given[path] for path in family}
        if lays_out:
            flat |= _floats_laid_out(members, dtype, rounding, joined)
        else:
            flat |= {path: _device(path, w, dtype) for path, w in members.items()}
    return _assemble(flat, ranges or {}, tuple(joined), lays_out)


def from_packed(cfg: LlamaConfig, packed: PackedModel, dtype: DTypeLike, kernels: str = "auto") -> Weights:
    """Returns the weights of a packed model, its codes still packed; what the file holds as floats is cast to `dtype`.

    Args:
      cfg: sizes and constants.
      packed: the model.
      dtype: of what is not packed.
      kernels: "gpu" lays matrices out, "xla" leaves them as they are in the file, see `Kernels`, and "auto" lays out
        those that the kernel of `lowbit.pallas` takes, and floats, on a GPU that it was made for, where `dtype` is
        bfloat16: the kernel knows no other float activations.

    Raises:
      ConfigError: unknown kernels.
      QuantizerError: a matrix that the kernel does not take, if it was asked for.
      FormatError: a record of activations that cannot be read.
      ModelError: tensors that are not those of the config, or a matrix packed across the direction in which it is
        multiplied, such as an embedding along the vocabulary.
    """
    _check(kernels)
    shapes = unstacked_shapes(cfg)
    if odd := sorted(shapes.keys() ^ packed.tensors.keys()):
        raise ModelError(
            f"the tensors of the packed model are not those of its config: see {', '.join(odd[:4])}", "export it again"
        )
    rounding, ranges = from_meta(packed.meta, cfg)
    lays_out = kernels == "gpu" or (kernels == "auto" and jnp.dtype(dtype) == jnp.bfloat16 and kernel_runs_here())
    flat: dict[str, Any] = {}
    joined: list[Joined] = []
    # One family after another, each from the file to where it stays: what is on the way is one of them, not the model.
    for family in families(param_shapes(cfg)):
        members: dict[str, Any] = {path: _read(cfg, packed, path) for path in family}
        if not lays_out:
            flat |= {path: _as_it_is(path, w, dtype) for path, w in members.items()}
            continue
        if isinstance(members[family[0]], PackedWeight) and may_be_joined(members, rounding):
            whole = _laid_out(join(list(members.values())), dtype, kernels)
            if isinstance(whole, GpuWeight):
                outputs = tuple((path, w.packed.shape[-2]) for path, w in members.items())
                joined.append(Joined(whole, outputs))
                continue
        codes = {path: w for path, w in members.items() if isinstance(w, PackedWeight | OwnLayers)}
        flat |= {path: _laid_out(w, dtype, kernels) for path, w in codes.items()}
        floats = {path: w for path, w in members.items() if path not in codes}
        flat |= _floats_laid_out(floats, dtype, rounding, joined)
    return _assemble(flat, ranges, tuple(joined), lays_out)


def _check(kernels: str) -> None:
    if kernels not in get_args(Kernels):
        raise ConfigError(f"unknown kernels {kernels!r}", nearest(kernels, get_args(Kernels)))


def _read(cfg: LlamaConfig, packed: PackedModel, path: str) -> PackedWeight | OwnLayers | np.ndarray:
    """A parameter of the file, its layers in one, in numpy: packed, or floats, or each as it is where they differ."""
    tensors = [packed.tensors[name] for name in layer_names(cfg, path, packed_name)]
    if not path.startswith(LAYER_PREFIX):
        return _codes(path, tensors[0]) if isinstance(tensors[0], PackedTensor) else decode(tensors[0])
    if not any(isinstance(tensor, PackedTensor) for tensor in tensors):
        return np.stack([decode(tensor) for tensor in tensors])
    found = [_codes(path, tensor) if isinstance(tensor, PackedTensor) else decode(tensor) for tensor in tensors]
    if len({_form(w) for w in found}) > 1:
        return OwnLayers(tuple(found))
    stacked: PackedWeight = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    return stacked


def _codes(path: str, tensor: PackedTensor) -> PackedWeight:
    """A packed matrix, outputs first, in numpy."""
    if tensor.transposed == is_transposed(path):
        raise ModelError(
            f"{path} is packed across the direction in which it is multiplied",
            "run it with decoded weights, or export it with one scale for each output",
        )
    levels = tuple(float(level) for level in tensor.levels)
    adapter = None if tensor.adapter is None else Factors(tensor.adapter.a, tensor.adapter.b)
    return PackedWeight(tensor.packed, tensor.scale, tensor.zero, tensor.in_scale, levels, tensor.shape[0], adapter)


def _form(w: Any) -> Any:
    """What layers have to share to be one stack."""
    return jax.tree.structure(w), tuple((leaf.shape, leaf.dtype.str) for leaf in jax.tree.leaves(w))


def _as_it_is(path: str, w: Any, dtype: DTypeLike) -> Any:
    """A parameter on the device, for plain XLA."""
    if isinstance(w, OwnLayers):
        return OwnLayers(tuple(_own(one, dtype) for one in w.matrices))
    return jax.tree.map(jnp.asarray, w) if isinstance(w, PackedWeight) else _device(path, w, dtype)


def _own(w: Any, dtype: DTypeLike) -> PackedWeight | FloatMatrix:
    """The matrix of one layer on the device."""
    if isinstance(w, PackedWeight):
        packed: PackedWeight = jax.tree.map(jnp.asarray, w)
        return packed
    return FloatMatrix(jnp.asarray(w).astype(dtype).T)


def _floats_laid_out(
    members: Mapping[str, Any], dtype: DTypeLike, rounding: ActivationRounding, joined: list[Joined]
) -> dict[str, Any]:
    """Floats of a family by their paths, matrices outputs first; what is one matrix now is added to `joined`."""
    if may_be_joined(members, rounding):
        outputs = tuple((path, w.shape[-1]) for path, w in members.items())
        joined.append(Joined(lay_out(list(members.values()), dtype), outputs))
        return {}
    flat: dict[str, Any] = {}
    for path, w in members.items():
        if path == HEAD:
            flat[path] = FloatMatrix(jnp.asarray(w).astype(dtype).T)
        elif path.startswith(LAYER_PREFIX) and path.endswith("/kernel"):
            flat[path] = lay_out([w], dtype)
        else:
            flat[path] = _device(path, w, dtype)
    return flat


def _laid_out(w: Any, dtype: DTypeLike, kernels: str) -> Any:
    """A matrix for the GPU's kernel; what this does not take is left to XLA, unless the kernel was asked for."""
    if isinstance(w, OwnLayers):
        return OwnLayers(tuple(_laid_out(one, dtype, kernels) for one in w.matrices))
    if not isinstance(w, PackedWeight):
        return _own(w, dtype)
    try:
        return for_gpu(w)
    except QuantizerError:
        if kernels == "gpu":
            raise
        return _own(w, dtype)


def _assemble(flat: dict[str, Any], ranges: Ranges, joined: tuple[Joined, ...], lays_out: bool) -> Weights:
    embedding, head = flat.pop(EMBEDDING), flat.pop(HEAD, None)
    stacked = {path: w for path, w in flat.items() if isinstance(w, GpuWeight | OwnLayers)}
    parts = {
        "params": {path: w for path, w in flat.items() if path not in stacked and not isinstance(w, PackedWeight)},
        "packed": {path: w for path, w in flat.items() if isinstance(w, PackedWeight)},
        "stacked": stacked,
    }
    layers = {name: unflatten(part) for name, part in parts.items()}
    apart = _apart(layers["params"]) if lays_out else ()
    return Weights({**layers, "apart": apart, "joined": joined, "grid": range_variables(ranges)}, embedding, head)


def _apart(params: Tree) -> tuple[Tree, ...]:
    """The parameters of each layer: a program that took them out of a stack would copy them, each time it runs."""
    stacks = jax.tree.leaves(params.get("layers", {}))
    return tuple(_cut(params, layer) for layer in range(len(stacks[0]) if stacks else 0))


def _device(path: str, w: Any, dtype: DTypeLike) -> jax.Array:
    """Matrices in the dtype that multiplies them; norms and biases in float32, as they are used."""
    is_matrix = path == EMBEDDING or path.endswith("/kernel")
    return jnp.asarray(w).astype(dtype if is_matrix else jnp.float32)
