"""Which models with rounded activations the runtimes without jax compute: those of their own integer path."""

from lowbit.errors import ModelError
from lowbit.formats import PackedModel, PackedTensor
from lowbit.kernels.weights import of_whole_levels
from lowbit.llama import LlamaConfig
from lowbit.llama.activations import from_meta

INT8 = "int8"


def made_for(packed: PackedModel, config: LlamaConfig, activations: str | None) -> str | None:
    """Returns the activations to take, of those asked for (None: no choice) and those that the model was made for.

    Raises:
      ModelError: the file says that activations are rounded, and not as the integer path rounds them.
      FormatError: its record of activations cannot be read.
    """
    rounding, _ = from_meta(packed.meta, config)
    if not rounding:
        return activations
    made = f"the model was made for {rounding.described()}"
    elsewhere = "run it in jax, which does: --backend jax, or lowbit.generation"
    if not rounding.is_integer_path:
        raise ModelError(f"{made}, which the runtimes without jax do not compute", elsewhere)
    if not _only_layers_are_integers(packed):
        raise ModelError(f"{made}, and the integer path would round other products, or not all of these", elsewhere)
    if activations not in (None, INT8):
        raise ModelError(f"{made}, and {activations} activations are asked for", "leave activations out, or take int8")
    return INT8


def _only_layers_are_integers(packed: PackedModel) -> bool:
    """Whether the integer path rounds what the kernels of all layers read, as it comes, and nothing else."""

    def is_integer(name: str) -> bool:
        tensor = packed.tensors[name]
        return isinstance(tensor, PackedTensor) and of_whole_levels(tensor) and tensor.in_scale is None

    kernels = {name for name in packed.tensors if name.startswith("layers.") and name.endswith(".kernel")}
    others = packed.tensors.keys() - kernels
    return all(map(is_integer, kernels)) and not any(isinstance(packed.tensors[name], PackedTensor) for name in others)
