"""A model whose linear layers multiply integers alone: int8 inputs and weights, int32 sums, int16 outputs.

Floats enter behind each product, where an int16 code becomes a number, and leave where the next input is rounded. In
between no operation has a float (`lowbit.numerics.integer`). What lies between linear layers stays float: norms, rotary
angles, attention, SiLU and the residual stream; so do embedding and head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.errors import QuantizerError
from lowbit.formats import PackedModel, PackedTensor
from lowbit.llama import LINEARS, ActivationRounding, InputRounding, LlamaConfig
from lowbit.llama.activations import from_meta
from lowbit.models.activations import STATE, input_quantizer, range_variables
from lowbit.models.packed import packed_name
from lowbit.numerics.activations import integers
from lowbit.numerics.grids import Grid
from lowbit.numerics.integer import IntegerLinear, wide_linear
from lowbit.numerics.qtensor import QTensor
from lowbit.tree import flatten, unflatten


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntegerKernel:
    """What stands in the place of a kernel, or of a stack of them.

    Attributes:
      linear: the product.
      steps: f32[*s n], what a step of an output means, in units of a step of the inputs.
      range: f32[*s 1 1], scale of the inputs where it was calibrated; None where each token has its own.
      rounding: of the inputs (static).
    """

    # Not annotated as arrays: jax rebuilds pytrees around stand-ins for them.
    linear: Any
    steps: Any
    range: Any
    rounding: InputRounding = dataclasses.field(metadata={"static": True})


def integer_kernels(cfg: LlamaConfig, packed: PackedModel) -> dict[str, Any]:
    """Returns the kernels of a packed model as its collection `layers.PACKED`, for `dot_general=integer_product`.

    Args:
      cfg: its sizes.
      packed: with kernels of evenly spaced levels and one scale an output, and inputs of levels around 0 that are
        rounded by token or by one calibrated range.

    Raises:
      QuantizerError: another rounding of inputs, or a kernel that `wide_linear` refuses; with the path.
      FormatError: damaged codes, or a record of activations that cannot be read.
    """
    rounding, ranges = from_meta(packed.meta, cfg)
    _check(rounding)
    inputs = dict(rounding.inputs)
    calibrated = flatten(range_variables(ranges))
    kernels = {}
    for path in LINEARS:
        layers = [_layer(packed, f"{path}/kernel", index) for index in range(cfg.num_layers)]
        linears = _alike([linear for linear, _ in layers])
        kernels[f"{path}/kernel"] = IntegerKernel(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *linears),
            jnp.asarray(np.stack([steps for _, steps in layers]).astype(np.float32)),
            calibrated.get(f"{path}/{STATE}/scale"),
            inputs[path],
        )
    return unflatten(kernels)


def integer_product(x: jax.Array, kernel: IntegerKernel, dimensions: Any) -> jax.Array:
    """Returns x [b k] times the kernel, f32[b n]; in the place of `jax.lax.dot_general`."""
    del dimensions  # of a kernel, always those of a matrix product
    quantizer = input_quantizer(kernel.rounding)
    state = quantizer.state_of(x, {} if kernel.range is None else {"scale": kernel.range})
    rounded: Any = quantizer.encode(x, state)
    codes = integers(rounded)
    products = integer_linear(kernel.linear, codes.numbers).astype(jnp.float32)
    return products * (codes.scale * kernel.steps[None, :])


@jax.jit
def integer_linear(linear: IntegerLinear, x: jax.Array) -> jax.Array:
    """Returns the codes of outputs, i16[b n]; a program of its own, so that it can be found in that of a model."""
    return linear(x)


def _check(rounding: ActivationRounding) -> None:
    inputs = dict(rounding.inputs)
    for path in LINEARS:
        if path not in inputs:
            raise QuantizerError(
                f"the inputs of {path} are floats, and integers cannot be multiplied by them",
                "quantize with --activations int8-dynamic, int8-mixed or int8-static",
            )
        one = inputs[path]
        scales = "tensor" if one.range == "static" else "token"
        if not one.symmetric or one.granularity != scales or one.variant != "fixed":
            raise QuantizerError(
                f"the inputs of {path} are not rounded to levels around 0, by token or by one calibrated range",
                "take activations.symmetric=true, and granularity=token, or tensor with range=static",
            )


def _layer(packed: PackedModel, path: str, index: int) -> tuple[IntegerLinear, np.ndarray]:
    name = packed_name(path, index)
    tensor = packed.tensors[name]
    if not isinstance(tensor, PackedTensor):
        raise QuantizerError(f"{name} is stored as floats", "quantize it to evenly spaced levels")
    if tensor.adapter is not None:
        raise QuantizerError(f"{name} has an adapter of floats", "evaluate it in floats, or train without adapters")
    grid = Grid(tensor.grid, tuple(float(level) for level in tensor.levels))
    try:
        return wide_linear(QTensor(tensor.codes(), tensor.scale, tensor.zero, grid, tensor.transposed, tensor.in_scale))
    except QuantizerError as error:
        raise QuantizerError(f"{name}: {error.cause}", error.mend) from error


def _alike(linears: list[IntegerLinear]) -> list[IntegerLinear]:
    """Layers of one structure: zero points are there in all of them or in none."""
    if all(linear.weight_zero is None for linear in linears):
        return linears
    return [
        linear
        if linear.weight_zero is not None
        else dataclasses.replace(linear, weight_zero=jnp.zeros_like(linear.constant))
        for linear in linears
    ]
