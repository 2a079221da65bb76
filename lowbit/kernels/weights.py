"""The parameters of a packed model, checked against its config and ready to be multiplied."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ConfigError, FormatError, QuantizerError, nearest
from lowbit.formats import BFloat16, PackedModel, PackedTensor, StoredTensor, decode
from lowbit.formats.tensors import located
from lowbit.kernels import reference
from lowbit.llama import LlamaConfig, param_shapes

Activations = Literal["int8", "float32"]
"""Rounded to 8 bits per token, with exact sums (`reference.matmul_int8`); or as they are (`reference.matmul`)."""

Storage = Literal["float32", "packed"]
"""Decode once and keep float32 (numpy's fastest), or keep the codes and decode at every use (least memory)."""

OUTPUTS_AT_A_TIME = 4096
"""Outputs decoded together under "packed": bounds what a large head takes to this many columns."""


def unstacked_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every tensor that a packed file of this config holds."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, shape in param_shapes(config).items():
        top, _, rest = path.partition("/")
        if top == "layers":
            for layer in range(config.num_layers):
                shapes[f"layers.{layer}.{rest.replace('/', '.')}"] = shape[1:]
        else:
            shapes[path.replace("/", ".")] = shape
    return shapes


class Weights:
    """Products and look-ups by parameter name.

    Args:
      packed: the model.
      config: what it must hold.
      storage: see `Storage`.
      activations: "int8" in products with packed matrices of whole-numbered levels, which then stay packed; it is
        slow here, and the reference of what the compiled kernels do.

    Raises:
      FormatError: a tensor that is missing, superfluous, of another shape than the config's, or damaged.
      ConfigError: unknown storage or activations.
    """

    def __init__(
        self,
        packed: PackedModel,
        config: LlamaConfig,
        storage: Storage = "float32",
        activations: str = "float32",
    ):
        if storage not in get_args(Storage):
            raise ConfigError(f"unknown weight storage {storage!r}", nearest(str(storage), get_args(Storage)))
        if activations not in get_args(Activations):
            raise ConfigError(f"unknown activations {activations!r}", nearest(str(activations), get_args(Activations)))
        check_tensors(packed, config)
        self.activations = activations
        self._tensors: dict[str, StoredTensor] = {}
        for name, tensor in packed.tensors.items():
            with located(f"tensor {name!r}"):
                vector = not isinstance(tensor, PackedTensor) and len(tensor.shape) == 1
                at_once = storage == "float32" and not (activations == "int8" and of_whole_levels(tensor))
                self._tensors[name] = decode(tensor) if vector or at_once else tensor

    @property
    def nbytes(self) -> int:
        """Bytes held, memory-mapped ones included."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def vector(self, name: str) -> NDArray[np.float32]:
        """Returns a norm's scale or a bias."""
        return decode(self._tensors[name])

    def rows(self, name: str, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """Returns rows of an embedding [V d], f32[*index d]."""
        return embedding_rows(self._tensors[name], index)

    def matmul(self, x: NDArray[np.float32], name: str, *, transposed: bool = False) -> NDArray[np.float32]:
        """Returns x[... k] @ parameter[k n], or @ parameter[n k].T where `transposed` (a tied head)."""
        flat = x.reshape(-1, x.shape[-1])
        tensor = self._tensors[name]
        if isinstance(tensor, PackedTensor) and tensor.transposed == transposed:
            of_codes = self.activations == "int8" and of_whole_levels(tensor)
            multiply = reference.matmul_int8 if of_codes else reference.matmul
            product = _by_parts(multiply, flat, tensor.without_adapter())
            if tensor.adapter is not None:  # whole, as compiled kernels add it
                product += reference.adapter_product(flat, tensor.adapter, "int8" if of_codes else "float32")
        else:
            matrix = tensor if isinstance(tensor, np.ndarray) else decode(tensor)
            matrix = matrix.astype(np.float32, copy=False)
            product = flat @ (matrix.T if transposed else matrix)
        return product.reshape(*x.shape[:-1], -1)


def embedding_rows(tensor: StoredTensor, index: NDArray[np.integer]) -> NDArray[np.float32]:
    """Returns rows of an embedding [V d], f32[*index d]."""
    flat = index.reshape(-1)
    if isinstance(tensor, np.ndarray):
        rows = tensor[flat].astype(np.float32)
    elif isinstance(tensor, BFloat16):
        rows = BFloat16(tensor.bits[flat]).decode()
    elif tensor.transposed:
        rows = tensor.outputs(flat).decode()
    else:
        rows = tensor.decode()[flat]
    return rows.reshape(*index.shape, -1)


def of_whole_levels(tensor: StoredTensor) -> bool:
    """Whether 8-bit activations have exact sums with a tensor: equal distances of whole-numbered levels."""
    if not isinstance(tensor, PackedTensor):
        return False
    try:
        values = reference.integer_levels(tensor.levels).values
    except QuantizerError:
        return False
    return len(set(np.diff(values).tolist())) == 1


def _by_parts(
    multiply: Callable[[NDArray[np.float32], PackedTensor], NDArray[np.float32]],
    x: NDArray[np.float32],
    w: PackedTensor,
) -> NDArray[np.float32]:
    n = w.shape[1]
    product = np.empty((len(x), n), np.float32)
    for start in range(0, n, OUTPUTS_AT_A_TIME):
        part = slice(start, min(start + OUTPUTS_AT_A_TIME, n))
        product[:, part] = multiply(x, w.outputs(part))
    return product


def check_tensors(packed: PackedModel, config: LlamaConfig) -> None:
    """Checks that a model has the tensors of a config.

    Raises:
      FormatError: one that is missing, superfluous or of another shape.
    """
    expected = unstacked_shapes(config)
    for name in expected.keys() - packed.tensors.keys():
        raise FormatError(
            f"the packed model lacks tensor {name!r}, which its config asks for", "export the model again"
        )
    for name, tensor in packed.tensors.items():
        if name not in expected:
            raise FormatError(
                f"the packed model holds tensor {name!r}, which its config does not know",
                "export the model again with the config that belongs to it",
            )
        shape = tuple(tensor.shape)
        if isinstance(tensor, PackedTensor) and tensor.transposed:
            shape = shape[::-1]
        if shape != expected[name]:
            raise FormatError(
                f"tensor {name!r} has shape {list(shape)}, the config says {list(expected[name])}",
                "export the model again with the config that belongs to it",
            )
