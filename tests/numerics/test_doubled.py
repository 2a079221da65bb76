"""Scales that are quantized once more: what they cost and lose, the published code's, and how they learn."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.numerics import coded_scales, scales
from lowbit.numerics.quantizers import absmean_ternary, adapted, doubled, fixed, nf4, onebit, paretoq, rtn, stored_as
from lowbit.tree import Rule, bits_report

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
HALF_ULP = 2.0**-11
"""Of float16, relative, above its subnormal numbers."""


def some_scales(shape=(3, 5, 140), seed=0):
    """Of three layers, 700 scales each, so that two blocks are whole and one is not; one scale is far out."""
    rng = np.random.default_rng(seed)
    found = np.abs(0.02 + 0.004 * rng.standard_normal(shape)).astype(np.float32)
    found[0, 0, 0] = 0.3
    return jnp.asarray(found)


def weights(shape=(64, 40), seed=0):
    return jnp.asarray(0.05 * np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32))


def test_what_is_decoded_is_one_formula_in_numpy_too():
    coded = coded_scales.encode(some_scales())
    codes, steps, mean = (np.asarray(part) for part in coded)
    assert (codes.shape, steps.shape, mean.shape) == ((3, 140, 5), (3, 3), (3, 1))
    assert (codes.dtype, steps.dtype, mean.dtype) == (np.uint8, np.float32, np.float32)
    for layer in range(3):
        wide = np.repeat(steps[layer], 256)[:700]
        rows = (codes[layer].astype(np.float32) - 128).reshape(-1) * wide + mean[layer]
        expected = np.clip(rows, np.float32(1e-5), 65504).astype(np.float16).reshape(140, 5).T
        np.testing.assert_array_equal(np.asarray(coded_scales.decode(coded))[layer], expected.astype(np.float32))


def test_scales_are_within_half_a_step_and_steps_are_as_small_as_they_may_be():
    scale = some_scales()
    coded = coded_scales.encode(scale)
    stored = np.asarray(scales.stored(scale, jnp.float16))
    error = np.abs(np.asarray(coded_scales.decode(coded)) - stored)
    steps = np.repeat(np.asarray(coded.steps), 256, axis=-1)[:, :700].reshape(3, 140, 5).swapaxes(-1, -2)
    # Half a step, and half a unit of float16 in what comes out; 1 % of a step for a tie that falls by the last bit.
    assert np.all(error <= 0.51 * steps + stored * HALF_ULP)
    used = np.abs(np.asarray(coded.codes).astype(int) - 128)
    assert used.max() == 127
    flat = np.pad(used.reshape(3, -1), ((0, 0), (0, 68))).reshape(3, 3, 256)
    np.testing.assert_array_equal(flat.max(-1), 127)
    # A step's 16 significant bits make its product with any code exact, fused with an addition or not.
    assert not np.any(np.asarray(coded.steps).view(np.uint32) & 0xFF)


def test_scales_that_are_all_alike_and_none_at_all_stay_what_they_are():
    for value in (0.25, 1e-5, 60000.0):
        alike = jnp.full((2, 4, 8), value, jnp.float32)
        decoded = coded_scales.decode(coded_scales.encode(alike))
        np.testing.assert_array_equal(decoded, scales.stored(alike, jnp.float16))
    # Of a group of zeros the scale is the floor; the code nearest to it may lie below, and comes out as the floor.
    odd = some_scales().at[:, 2, :7].set(0.0)
    assert float(jnp.min(coded_scales.decode(coded_scales.encode(odd)))) >= np.float16(1e-5)


def test_blocks_and_mean_are_those_of_the_published_code():
    with np.load(GOLDEN / "nf4.npz") as file:
        golden = {key: file[key] for key in file}
    n, k = golden["weight"].shape
    w = jnp.asarray(golden["weight"].T)
    scale = nf4(64).init(w)["scale"]
    coded = coded_scales.encode(scale)
    # Scales are float16 before they are coded here: half a unit each, and so for their mean and for what is largest
    # in a block; a step is rounded up to 16 bits.
    size = float(np.abs(golden["absmax"]).max())
    assert float(coded.mean[0]) == pytest.approx(float(golden["dq_offset"]), abs=size * HALF_ULP)
    largest = np.asarray(coded.steps) * 127
    np.testing.assert_allclose(largest, golden["dq_absmax2"], rtol=2**-15, atol=2 * size * HALF_ULP)
    theirs = golden["dq_code"][golden["dq_absmax_code"]] * np.repeat(golden["dq_absmax2"], 256)[: n * k // 64]
    theirs = theirs + golden["dq_offset"]
    ours = np.asarray(coded_scales.decode(coded)).T.reshape(-1)
    # Theirs are floats of 8 bits, whose largest distance is 1.4 % of the block's largest; half of it, and half a step.
    reach = np.repeat(golden["dq_absmax2"], 256)[: n * k // 64]
    assert np.all(np.abs(ours - theirs) <= reach * (0.00705 + 0.51 / 127) + 2 * size * HALF_ULP)

    def lost(found):
        return float(np.sqrt(np.mean(np.square(found - golden["absmax"]))))

    assert lost(ours) < 0.8 * lost(theirs)
    w_hat = np.asarray(doubled(nf4(64)).fake(w, {"scale": scale})).T
    error, theirs_error = (np.linalg.norm(x - golden["weight"]) for x in (w_hat, golden["dq_dequant"]))
    assert error <= theirs_error * (1 + 1e-3)


def test_bits_per_weight_are_those_of_the_paper():
    w = jax.ShapeDtypeStruct((2, 4096, 512), jnp.float32)
    report = bits_report([Rule("w", doubled(nf4(64)))], {"w": w})
    per_weight = 8 / 64 + 32 / (64 * 256)
    assert per_weight == pytest.approx(0.127, abs=5e-4)
    assert report.quantized_bits_per_weight == 4 + per_weight + 32 / (4096 * 512)
    beside = bits_report([Rule("w", adapted(doubled(nf4(64)), 8, 16.0))], {"w": w})
    assert beside.quantized_bits_per_weight == report.quantized_bits_per_weight + 16 * 8 * 4608 / (4096 * 512)


def test_a_scale_that_learns_has_the_gradient_at_what_its_code_decodes_to():
    w, plain = weights(), paretoq(2, granularity=8)
    quantizer, state = doubled(plain), plain.init(weights())
    c = weights(seed=1)

    def gradients(q, state):
        return jax.grad(lambda w, s: jnp.vdot(q.fake(w, s), c), argnums=(0, 1))(w, state)

    decoded = {"scale": coded_scales.decode(coded_scales.encode(state["scale"]))}
    ours, expected = gradients(quantizer, state), gradients(plain, decoded)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert np.any(np.asarray(ours[1]["scale"]) != 0)


def test_codes_that_stay_are_those_that_doubled_scales_made():
    base = doubled(rtn(3, 8, symmetric=False))
    quantizer, w = fixed(base), weights()
    state = quantizer.init(w)
    start = base.encode(w, base.init(w))
    moved = {**state, "scale": 1.3 * state["scale"]}
    kept = quantizer.encode(w, moved)
    np.testing.assert_array_equal(kept.codes, start.codes)
    expected = coded_scales.encode(moved["scale"])
    jax.tree.map(np.testing.assert_array_equal, kept.coded_scale, expected)
    np.testing.assert_array_equal(kept.scale, coded_scales.decode(expected).astype(jnp.float16))
    assert quantizer.name == "rtn3_minmax_doubled_fixed"


def test_layers_of_two_widths_are_coded_each_by_itself():
    mixed, w = doubled(paretoq((2, 4), granularity=8)), weights((2, 64, 40))
    state = mixed.init(w)
    together = mixed.fake(w, state)
    for index, bits in enumerate((2, 4)):
        layer = mixed.layer(index)
        assert layer.name == f"paretoq{bits}_doubled"
        kept = layer.encode(w[index], {"scale": state["scale"][index]})
        np.testing.assert_array_equal(kept.decode(), together[index])
    stays = fixed(mixed)
    start = stays.init(w)
    one = jax.tree.map(lambda leaf: leaf[1], start)
    np.testing.assert_array_equal(stays.layer(1).encode(w[1], one).decode(), stays.fake(w, start)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: doubled(absmean_ternary()), "absmean_ternary has no scales of groups or outputs .*\n  -> leave quant"),
        (lambda: doubled(stored_as(jnp.float16)), "float16 has no scales of groups"),
        (lambda: doubled(onebit()), "scales of onebit are not float16, .*\n  -> set quant.scale_dtype=float16"),
        (lambda: doubled(nf4(64, jnp.float32)), "scales of nf4 are not float16"),
        (lambda: doubled(doubled(nf4(64))), "the scales of nf4_doubled are codes already\n  -> leave out"),
    ],
)
def test_what_has_no_scales_to_double_is_refused(make, message):
    with pytest.raises(QuantizerError, match=r"(?s)" + message):
        make()
