"""GPTQ against the reference code's figures, and on grids that it never had."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.numerics.quantizers import rtn
from lowbit.ptq.gptq import gptq

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("gptq_*.npz"))


def full_range(grouped, grid):
    """The reference's symmetric scale: 2^b levels over -max .. max, where ours puts the highest level on max."""
    return jnp.max(jnp.abs(grouped), axis=-2) * 2.0 / (2.0 * grid.reach + 1.0)


def reference_quantizer(bits: int, symmetric: bool, group: int):
    granularity = "channel" if group == -1 else group
    if symmetric:
        return rtn(bits, granularity, scale_init=full_range, scale_dtype=jnp.float32)
    return rtn(bits, granularity, symmetric=False, scale_dtype=jnp.float32)


def error(x, w, w_hat):
    return float(np.mean(np.square(x.astype(np.float64) @ (w - np.asarray(w_hat, np.float64)))))


@pytest.mark.parametrize("case", CASES)
def test_reference_code_gives_the_same_weights(case):
    data = np.load(GOLDEN / f"{case}.npz")
    _, width, kind, group, *order = case.split("_")
    quantizer = reference_quantizer(int(width[1:]), kind == "sym", int(group[1:]))
    w, x, expected = jnp.asarray(data["weight"].T), data["x"], data["out"].T
    gram = jnp.asarray((x.astype(np.float64).T @ x / len(x)).astype(np.float32))
    start = quantizer.init(w) if group == "g-1" else None
    w_hat, masters, state, valid = gptq(w, gram, quantizer, damping=0.01, act_order=bool(order), state=start)
    assert valid
    # The masters are weights that plain rounding sends to the result.
    assert np.array_equal(quantizer.fake(masters, state), w_hat)
    steps = np.repeat(np.asarray(state["scale"]), len(w) // len(state["scale"]), axis=0)
    apart = np.abs(np.asarray(w_hat) - expected) > 0.5 * steps
    visited = np.argsort(-np.diagonal(gram), kind="stable") if order else np.arange(len(w))
    same = ~apart.any(axis=0)
    for column in np.flatnonzero(~same):
        # Whatever differs began at a tie: the masters carry sums of up to 96 float32 roundings of a step each.
        first = next(row for row in visited if apart[row, column])
        units = float(masters[first, column] / steps[first, column])
        assert abs(abs(units - np.floor(units)) - 0.5) < 96 * 2.0**-24 * max(1.0, abs(units)), (case, units)
    assert same.mean() > 0.9
    mse = float(np.mean(np.square(x.astype(np.float64) @ (data["weight"].T - np.asarray(w_hat, np.float64)))))
    if same.all():
        assert mse == pytest.approx(float(data["mse_gptq"]), rel=1e-4)
    assert mse < 0.6 * float(data["mse_rtn"])
