"""Low-bit products inside jitted programs, by the compiled CPU kernels.

XLA on a CPU would write out the unpacked weights; a call through its foreign function interface does not.
"""

import dataclasses
import functools
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lowbit.errors import ConfigError, DataError, KernelError, QuantizerError, nearest
from lowbit.ffi.target import register
from lowbit.formats import PackedTensor
from lowbit.kernels import library
from lowbit.kernels.matrix import CompiledMatrix
from lowbit.kernels.weights import Activations


class Layout(NamedTuple):
    """What the kernels have to know of a matrix beside its numbers; static under jit.

    Attributes are the fields of `lb_matrix` in kernels/native/lowbit.h, the instruction set and the threads.
    """

    bits: int
    k: int
    n: int
    groups: int
    whole_levels: int
    first: int
    step: int
    unit: float
    num_levels: int
    isa: str
    threads: int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["units", "scale", "zero", "levels", "in_scale"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True)
class KernelMatrix:
    """A packed matrix [k n] as the kernels read it: a pytree of arrays, with a static layout.

    Matrices of one layout can be stacked, leaf by leaf, and scanned over.

    Attributes:
      units: codes, in the layout of kernels/native/lowbit.h.
      scale: [tiles g 16].
      zero: as scale, or empty.
      levels: what the codes mean.
      in_scale: a factor for each input, [k], or None.
      layout: the rest.
    """

    units: UInt8[Array, "*s bytes"]
    scale: Float[Array, "*s tiles g 16"]
    zero: Float[Array, "..."]
    levels: Float[Array, "*s levels"]
    in_scale: Float[Array, "*s k"] | None
    layout: Layout


def kernel_matrix(w: PackedTensor, kernels: str = "auto", threads: int | None = None) -> KernelMatrix:
    """Packs a tensor anew for the kernels of this processor.

    Args:
      w: the tensor.
      kernels: see `library.KERNELS`.
      threads: that share a product; None takes all processors.

    Raises:
      KernelError: numpy is chosen, or there are no compiled kernels.
      ConfigError: kernels that are unknown or that this processor lacks.
      FormatError: damaged codes.
      QuantizerError: sums of 8-bit activations that may pass int32; or an adapter, which the call does not add.
    """
    isa = library.choose(kernels)
    if w.adapter is not None:
        raise QuantizerError("this product adds no adapter", "multiply by w.without_adapter(), and add w.adapter's")
    if isa == "numpy":
        raise KernelError("numpy cannot be called from a jitted program", "choose compiled kernels, such as c")
    matrix = CompiledMatrix(w, isa, 1)
    s = matrix.struct
    layout = Layout(
        *(s.bits, s.k, s.n, s.groups, s.whole_levels, s.first, s.step, s.unit, s.num_levels),
        isa,
        threads or library.default_threads(),
    )
    parts = matrix.parts()
    zero = np.zeros(0, parts.scale.dtype) if parts.zero is None else parts.zero
    return KernelMatrix(
        units=jnp.asarray(parts.codes),
        scale=jnp.asarray(parts.scale),
        zero=jnp.asarray(zero),
        levels=jnp.asarray(parts.levels),
        in_scale=None if parts.in_scale is None else jnp.asarray(parts.in_scale),
        layout=layout,
    )


def matmul(x: Float[Array, "*b k"], w: KernelMatrix, activations: str = "int8") -> Float[Array, "*b n"]:
    """Returns x @ w in float32, as `CompiledMatrix.matmul` does; for CPUs, in or outside of jit.

    With "int8" bit for bit `reference.matmul_int8`. Not differentiable.

    Raises:
      ConfigError: unknown activations.
      DataError: x of another length or dtype. Activations that are not finite fail when the program runs.
      KernelError: the handler is not there and cannot be compiled.
    """
    if activations not in get_args(Activations):
        raise ConfigError(f"unknown activations {activations!r}", nearest(activations, get_args(Activations)))
    layout = w.layout
    if x.shape[-1] != layout.k or x.dtype != jnp.float32:
        raise DataError(f"activations are {x.dtype}{list(x.shape)}", f"give float32[... {layout.k}]")
    if w.in_scale is not None:
        x = x * w.in_scale.reshape((1,) * (x.ndim - 1) + (-1,))
    flat = x.reshape(-1, layout.k)
    call = jax.ffi.ffi_call(
        register(), jax.ShapeDtypeStruct((flat.shape[0], layout.n), jnp.float32), vmap_method="sequential"
    )
    numbers = {
        name: np.float32(value) if name == "unit" else np.int64(value)
        for name, value in layout._asdict().items()
        if name != "isa"
    }
    mode = np.int64(library.INT8 if activations == "int8" else library.FLOAT)
    y = call(flat, w.units, w.scale, w.zero, w.levels, isa=layout.isa, activations=mode, **numbers)
    return y.reshape(*x.shape[:-1], layout.n)
