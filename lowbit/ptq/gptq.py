"""GPTQ: round input after input, and let the inputs that are left make up for the error (arXiv 2210.17323)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError
from lowbit.numerics.quantizers import Quantizer, State
from lowbit.ptq.method import Options, Rounded
from lowbit.ptq.moments import Moments, product
from lowbit.ptq.programs import jit
from lowbit.ptq.target import Target

LARGEST_BLOCK = 128
"""Inputs whose errors reach the weights after them in one product; changes no result, up to float32 rounding."""


def gptq_round(path: str, w: Float[Array, "k n"], moments: Moments | None, target: Target, options: Options) -> Rounded:
    """Optimal brain quantization in a fixed order, with lazy updates of a block of inputs at a time.

    With H the second moments of the inputs (the paper's 2 X X^T up to a factor that cancels) plus damping, and U the
    upper Cholesky factor of H^-1, input j is rounded and the rest of the weights compensates:

      w_hat[j] = Q(w[j]),    w[i] -= U[j, i] (w[j] - w_hat[j]) / U[j, j]    for all i > j

    The masters are the compensated weights as they stood when they were rounded: the plain quantizer makes the same
    codes of them. Cost: k^3 for the factor and 2 k^2 n for the updates; k steps follow each other.

    Scales: per tensor and per channel from the weights at the start; per group from the weights as compensated when the
    group's block begins (as in the reference code), or with `static_groups` from the weights at the start.

    Works on every grid that one code a weight can hold. Source: arXiv 2210.17323; reference IST-DASLab/gptq.
    """
    del path
    assert moments is not None
    assert target.quantizer is not None
    whole = options.static_groups or not isinstance(target.granularity, int)
    w_hat, masters, state, valid = gptq(
        w,
        moments.gram,
        target.quantizer,
        damping=options.damping,
        act_order=options.act_order,
        state=state_of_whole(w, target.quantizer) if whole else None,
    )
    return Rounded(w_hat, masters, state, target.quantizer, valid=valid)


def check_gptq(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """Refuses settings before any work.

    Raises:
      QuantizerError: damping out of range, or an order that scatters the inputs of a group.
    """
    del inputs
    if not 0.0 <= options.damping < 1.0:
        raise QuantizerError(f"a damping of {options.damping:g}", "give a share of the mean diagonal, such as 0.01")
    if options.act_order and isinstance(target.granularity, int) and not options.static_groups:
        raise QuantizerError(
            f"act order would make groups of {target.granularity} inputs that do not lie side by side",
            "add static groups, or take one scale a channel",
        )


def block_size(k: int, group: int | None) -> int:
    """The largest divisor of k up to `LARGEST_BLOCK` that holds whole groups; one group where groups are larger."""
    unit = 1 if group is None else group
    sizes = [b for b in range(unit, LARGEST_BLOCK + 1, unit) if k % b == 0]
    return max(sizes, default=unit)


@functools.partial(jit, static_argnames=("quantizer", "damping", "act_order"))
def gptq(
    w: Float[Array, "k n"],
    gram: Float[Array, "k k"],
    quantizer: Quantizer,
    *,
    damping: float,
    act_order: bool = False,
    state: State | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Rounds one kernel; factor, loop and updates are one program for all kernels of a shape.

    Args:
      w: the kernel.
      gram: second moments of its inputs; inputs that never occur have a zero diagonal, and their weights become 0.
      quantizer: what rounds a row; its granularity is a group where `state` is None.
      damping: share of the mean diagonal that is added to the diagonal.
      act_order: visit inputs of largest second moment first.
      state: of the quantizer for all of w; None makes each group's when its block begins.

    Returns:
      (w_hat f32[k n], masters f32[k n], state, valid bool[]: whether the Hessian could be factored).
    """
    k, _ = w.shape
    group = quantizer.granularity if state is None else None
    size = block_size(k, group if isinstance(group, int) else None)
    dead = jnp.diagonal(gram) == 0
    gram = gram + jnp.diag(dead.astype(jnp.float32))
    w = jnp.where(dead[:, None], 0.0, w.astype(jnp.float32))
    order = jnp.argsort(-jnp.diagonal(gram), stable=True) if act_order else jnp.arange(k)
    w, gram = w[order], gram[order][:, order]
    upper = inverse_factor(gram + damping * jnp.mean(jnp.diagonal(gram)) * jnp.eye(k, dtype=jnp.float32))

    def round_block(w: Float[Array, "k n"], start: Any) -> tuple[Float[Array, "k n"], tuple[Any, Any, Any]]:
        rows = jax.lax.dynamic_slice_in_dim(upper, start, size)
        inside = jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)
        block = jax.lax.dynamic_slice_in_dim(w, start, size)
        own = quantizer.init(block) if state is None else state
        inputs, length = (jnp.arange(size), size) if state is None else (order[start + jnp.arange(size)], k)

        def round_row(j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            block, masters, w_hat = carry
            row = block[j][None]
            rounded = quantizer.fake(row, state_of_input(own, inputs[j], length))
            error = (row - rounded) / inside[j, j]
            block = block - inside[j][:, None] * error
            return block, masters.at[j].set(row[0]), w_hat.at[j].set(rounded[0])

        _, masters, w_hat = jax.lax.fori_loop(0, size, round_row, (block, block, block))
        errors = (masters - w_hat) / jnp.diagonal(inside)[:, None]
        return w - product(rows.T, errors), (masters, w_hat, own if state is None else {})

    _, (masters, w_hat, made) = jax.lax.scan(round_block, w, jnp.arange(0, k, size))
    masters, w_hat = (jnp.zeros_like(w).at[order].set(blocks.reshape(w.shape)) for blocks in (masters, w_hat))
    if state is None:
        state = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in made.items()}
    return w_hat, masters, state, jnp.all(jnp.isfinite(upper)) & jnp.all(jnp.isfinite(w_hat))


@functools.partial(jit, static_argnames=("quantizer",))
def state_of_whole(w: Float[Array, "k n"], quantizer: Quantizer) -> State:
    """The state that the quantizer begins with for all of w: one program a shape, where eager ops would be hundreds."""
    return quantizer.init(w)


def state_of_input(state: State, index: Any, k: int) -> State:
    """The state of one of the k inputs, leaves [1 m], cut from leaves [g m]."""
    return {name: leaf[index // (k // leaf.shape[0])][None] for name, leaf in state.items()}


def inverse_factor(h: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Returns the upper U with h^-1 = U^T U; NaN where h is not positive definite.

    With the order of the inputs turned round, h = R R^T of an upper R, and U = R^-1: one factor and one solve, where
    inverting first loses half of the digits.
    """
    flipped = jnp.linalg.cholesky(h[::-1, ::-1])
    upper = flipped[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper, jnp.eye(h.shape[0], dtype=h.dtype), lower=False)


def check_valid(valid: Any, where: str, options: Options) -> None:
    """Raises QuantizerError where the Hessian of the kernel `where` could not be factored."""
    if not bool(valid):
        raise QuantizerError(
            f"the Hessian of the inputs of {where} is singular at damping {options.damping:g}",
            "raise the damping (0.05 is steadier), or give more calibration tokens",
        )
