"""SmoothQuant's search of alpha: its error against rounding itself, and what it chooses."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.ptq import METHODS, Options, make_target
from lowbit.ptq.folding import (
    ALPHAS,
    AT_NORMS,
    KERNELS,
    NORMS,
    SEARCH,
    fold,
    least_alpha,
    smoothing,
    smoothquant_fold,
    static_error,
)
from lowbit.ptq.moments import Moments

QUANTIZER = make_target("integer", 8, "channel", "max").quantizer


def inputs_with_outliers(largest, tokens=2048, k=32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, k)) * rng.uniform(0.05, 2, k)
    x[0, 3] = largest  # one token and one input, as in a gated MLP
    return x.astype(np.float32)


def rounded_error(x, kernels, s):
    """The error of both roundings, by rounding."""
    step = np.abs(x / s).max() / 127
    x_hat = np.rint(x / s / step) * step
    found = 0.0
    for w in kernels:
        moved = jnp.asarray(w * s[:, None])
        w_hat = np.asarray(QUANTIZER.fake(moved, QUANTIZER.init(moved)))
        found += np.square(x_hat @ w_hat - x @ w).sum() / len(x)
    return found


@pytest.fixture(scope="module")
def kernels():
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal((32, n)).astype(np.float32) for n in (16, 24))


@pytest.mark.parametrize("largest", [3.0, 100.0, 3000.0])
def test_the_search_finds_what_errs_least_when_rounded(largest, kernels):
    x = inputs_with_outliers(largest)
    reach, gram = jnp.asarray(np.abs(x).max(axis=0)), jnp.asarray(x.T @ x / len(x))
    weights = tuple(jnp.asarray(w) for w in kernels)
    errors, estimates = [], []
    for alpha in ALPHAS:
        s = smoothing(weights, reach, jnp.float32(alpha))
        errors.append(rounded_error(x, kernels, np.asarray(s)))
        estimates.append(float(static_error(weights, gram, reach, s, QUANTIZER)))
    # A single input far beyond the others is its own largest, rounded exactly, and estimated as noise.
    if largest <= 100:
        # Mean squares over 2,048 tokens and 32 inputs are known to 1 %, and the noise near half a step is no noise.
        np.testing.assert_allclose(estimates, errors, rtol=0.05)
    chosen = float(least_alpha(weights, gram, reach, QUANTIZER))
    assert errors[ALPHAS.index(pytest.approx(chosen))] <= 1.05 * min(errors)


def test_each_layer_has_an_alpha_of_its_own_between_up_and_down():
    target, found_alphas = make_target("integer", 8, "channel", "max"), []
    for largest in (3.0, 3000.0):
        rng = np.random.default_rng(2)
        x = inputs_with_outliers(largest)
        seen = Moments(jnp.asarray(x.T @ x / len(x)), None, None, jnp.asarray(np.abs(x).max(axis=0)))
        flat, moments = {}, {}
        for place in (*NORMS, *KERNELS):
            moments[place.readers[0]] = seen
            for path in (*place.source, *place.readers):
                shape = (32,) if path.endswith("scale") else (32, 32)
                flat[path] = jnp.asarray(rng.standard_normal(shape).astype(np.float32))
        found = smoothquant_fold(flat, moments, target, Options(alpha=SEARCH), False)
        wanted = flat
        for place in (*NORMS, *KERNELS):
            readers = tuple(wanted[path] for path in place.readers)
            alpha = jnp.float32(AT_NORMS)
            if place in KERNELS:
                alpha = least_alpha(readers, seen.gram, seen.max_abs, QUANTIZER)
                found_alphas.append(float(alpha))
            wanted = fold(wanted, place, smoothing(readers, seen.max_abs, alpha))
        for path, leaf in wanted.items():
            np.testing.assert_allclose(found[path], leaf, rtol=1e-6, err_msg=path)
    assert found_alphas[0] != found_alphas[1]


def test_an_alpha_is_a_share_or_the_search():
    check, target = METHODS["smoothquant"].check, make_target("integer", 8, "channel", "max")
    check(target, Options(alpha=SEARCH), (32,))
    for alpha, shown in ((1.5, "1.5"), (float("nan"), "nan"), ("serch", "serch")):
        with pytest.raises(
            QuantizerError, match=rf"an alpha of {shown}\n  -> give a share from 0 to 1, .* or 'search'"
        ):
            check(target, Options(alpha=alpha), (32,))
