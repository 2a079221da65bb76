"""Grids, widths in the state, scale starts, stored floats, and what bad input is told."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.formats import packing_for, row_bytes
from lowbit.numerics import scales
from lowbit.numerics.grids import WIDTHS, Grid, paretoq_grid
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import QUANTIZERS, absmean_ternary, by_name, llmqat, paretoq, rtn, stored_as, transposed

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.standard_normal((64, 8)).astype(np.float32))
LEVELS = {
    1: [-1, 1],
    1.58: [-2 / 3, 0, 2 / 3],
    2: [-0.75, -0.25, 0.25, 0.75],
    3: list(range(-4, 4)),
    4: list(range(-8, 8)),
}


@pytest.mark.parametrize("bits", WIDTHS)
def test_paretoq_levels_and_bits(bits):
    grid = paretoq(bits).grid
    np.testing.assert_array_equal(grid.table(), np.asarray(LEVELS[bits], np.float32))
    assert grid.bits == pytest.approx(math.log2(len(LEVELS[bits])))
    assert grid.storage_bits == {1: 1, 1.58: 1.6, 2: 2, 3: 3, 4: 4}[bits]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 16, 17, 256])
def test_rows_take_the_bytes_of_the_packed_file(count):
    grid = Grid("any", tuple(map(float, range(count))))
    for k in range(1, 50):
        assert grid.row_bytes(k) == row_bytes(packing_for(count), k)


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_just_beyond_the_range_reach_the_outer_level_and_no_further(bits):
    q = paretoq(bits)
    state = {"scale": jnp.ones((1, 2))}
    w = jnp.asarray([[0.9901, -0.9901], [1e6, -1e6]], jnp.float32) * max(LEVELS[bits][-1], 1)
    codes = np.asarray(q.encode(w, state).codes)
    np.testing.assert_array_equal(codes[1], [len(LEVELS[bits]) - 1, 0])
    assert codes.max() < len(LEVELS[bits])


def test_widths_may_come_out_of_a_numpy_array():
    assert paretoq(np.int64(2)).name == paretoq(2).name
    assert paretoq(np.float64(1.58)).grid == paretoq(1.58).grid
    assert paretoq(list(np.asarray([2, 4]))).layer(1).grid == paretoq(4).grid
    with pytest.raises(QuantizerError, match="no grid has 5 bits"):
        paretoq(np.int64(5))


class TestTracedWidths:
    def test_each_layer_equals_its_own_quantizer(self):
        w = jnp.stack([W, 2 * W, W - 1, W + 1, -W])
        mixed = paretoq(WIDTHS)
        state = mixed.init(w)
        w_hat = mixed.fake(w, state)
        for i, bits in enumerate(WIDTHS):
            alone = paretoq(bits)
            own = alone.init(w[i])
            np.testing.assert_array_equal(state["scale"][i], own["scale"])
            np.testing.assert_array_equal(w_hat[i], alone.fake(w[i], own))
            np.testing.assert_array_equal(mixed.layer(i).encode(w[i], own).decode(), w_hat[i])

    def test_gradients_equal_those_of_static_grids(self):
        c = jnp.asarray(RNG.standard_normal(W.shape).astype(np.float32))
        for bits in WIDTHS:
            static, traced = paretoq(bits), paretoq([bits])
            own = static.init(W)
            grad = jax.grad(lambda w, s, q=static: jnp.vdot(q.fake(w, s), c), argnums=(0, 1))(W, own)
            stacked = traced.init(W[None])
            grad_traced = jax.grad(lambda w, s, q=traced: jnp.vdot(q.fake(w, s)[0], c), argnums=(0, 1))(
                W[None], stacked
            )
            np.testing.assert_array_equal(grad_traced[0][0], grad[0])
            np.testing.assert_allclose(grad_traced[1]["scale"][0], grad[1]["scale"], rtol=2**-22)
            assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grad_traced[1]["grid"]))

    def test_one_compiled_step_serves_all_widths(self):
        traces = []

        @jax.jit
        def step(w, state):
            traces.append(1)
            return paretoq([2]).fake(w, state)

        for bits in WIDTHS:
            step(W[None], paretoq([bits]).init(W[None]))
        assert len(traces) == 1

    def test_a_sweep_over_widths_and_learning_rates_is_one_vmap(self):
        states = [paretoq([bits]).init(W[None]) for bits in WIDTHS]
        rates = jnp.asarray([0.1, 0.2, 0.3, 0.4, 0.5])

        def step(state, rate):
            grad = jax.grad(lambda w: jnp.sum(paretoq([1]).fake(w, state) ** 2))(W[None])
            return W[None] - rate * grad

        together = jax.vmap(step)(jax.tree.map(lambda *s: jnp.stack(s), *states), rates)
        for i, state in enumerate(states):
            np.testing.assert_array_equal(together[i], step(state, rates[i]))

    def test_wrong_number_of_layers(self):
        with pytest.raises(QuantizerError, match=r"2 widths were given for a parameter of shape \(3, 64, 8\)"):
            paretoq([1, 2]).init(jnp.stack([W, W, W]))

    def test_no_common_grid_to_encode_to(self):
        q = paretoq([1, 2])
        w = jnp.stack([W, W])
        with pytest.raises(QuantizerError, match="no common grid"):
            q.encode(w, q.init(w))


class TestScales:
    @pytest.mark.parametrize("bits", WIDTHS)
    def test_mean_square_optimal_beats_the_other_starts(self, bits):
        def error(name):
            q = paretoq(bits, scale_init=name)
            return float(jnp.sum(jnp.square(W - q.fake(W, q.init(W)))))

        assert error("mse") <= min(error("max"), error("mean"), error("reference"))

    @pytest.mark.parametrize("bits", WIDTHS)
    def test_mean_square_optimal_is_near_the_minimum_of_a_fine_search(self, bits):
        affine = paretoq_grid(bits)[1]
        grouped = W[None]  # [g=1 G n]
        found = scales.mean_square_optimal()(grouped, affine)

        def error(scale):
            wide = scale[:, None, :]
            return jnp.sum(jnp.square(grouped - affine.level(affine.integers(grouped / wide)) * wide), axis=1)

        largest = scales.absmax(grouped, affine)
        fine = jnp.stack([error(f * largest) for f in np.linspace(0.02, 1, 1000)]).min(axis=0)
        # The search steps by (1 - 0.15)/34 = 2.5 % of the maximum and then solves for the scale at fixed codes.
        assert np.all(error(found) <= 1.03 * fine)

    def test_binary_optimum_is_the_mean_magnitude(self):
        np.testing.assert_allclose(paretoq(1).init(W)["scale"][0], jnp.mean(jnp.abs(W), axis=0), rtol=1e-6)

    def test_scale_is_floored_and_kept_finite_in_the_stored_dtype(self):
        kept = scales.stored(jnp.asarray([[0.0, -1.0, 1e9, 0.1]]), jnp.float16)
        expected = np.float32(np.float16([1e-5, 1e-5, 65504, 0.1]))
        np.testing.assert_array_equal(kept[0], expected)

    def test_division_is_correctly_rounded_whatever_the_compiler_does(self):
        scale = jnp.max(jnp.abs(W), axis=0, keepdims=True) / 3
        expected = np.asarray(W) / np.asarray(scale)
        for divide in (scales.in_units_of, jax.jit(scales.in_units_of)):
            np.testing.assert_array_equal(divide(scale, W)[0], expected)


def test_transposed_quantizes_rows():
    q = transposed(rtn(4))
    embedding = W.T
    state = q.init(embedding)
    assert state["scale"].shape == (1, embedding.shape[0])
    kept = q.encode(embedding, state)
    assert kept.decode().shape == embedding.shape
    np.testing.assert_array_equal(q.fake(embedding, state), kept.decode())
    np.testing.assert_array_equal(kept.decode().T, rtn(4).encode(W, rtn(4).init(W)).decode())


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_stored_as_ships_what_it_trains(dtype):
    q = stored_as(dtype)
    w = jnp.asarray([1.0001, -3.14159, 1e6, 0.0], jnp.float32)
    assert q.init(w) == {}
    kept = q.encode(w, {})
    assert kept.dtype == dtype
    assert bool(jnp.all(jnp.isfinite(kept)))
    np.testing.assert_array_equal(q.fake(w, {}), kept.astype(jnp.float32))


def test_qtensor_is_a_pytree_with_static_grid():
    kept = paretoq(2).encode(W, paretoq(2).init(W))
    leaves, structure = jax.tree.flatten(kept)
    assert len(leaves) == 2
    assert isinstance(jax.tree.unflatten(structure, leaves), QTensor)
    np.testing.assert_array_equal(jax.jit(lambda q: q.decode())(kept), kept.decode())


class TestBadInput:
    @pytest.mark.parametrize("bits", [0, 5, 2.5, 16])
    def test_unknown_width(self, bits):
        with pytest.raises(QuantizerError, match=f"no grid has {bits} bits per weight\n  -> widths are 1, 1.58"):
            paretoq(bits)

    def test_no_width_at_all(self):
        with pytest.raises(QuantizerError, match=r"no width was given\n.*one for each layer"):
            paretoq([])

    @pytest.mark.parametrize("dtype", [jnp.int8, "int8", "float64", "fp16"])
    @pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
    def test_scale_dtype_that_no_file_holds(self, make, dtype):
        name = dtype if isinstance(dtype, str) else "int8"
        bits = () if make is absmean_ternary else (4,)
        with pytest.raises(QuantizerError, match=f"a scale cannot be stored as '{name}'\n.*float16, bfloat16, float32"):
            make(*bits, scale_dtype=dtype)

    def test_unknown_method_names_the_nearest(self):
        with pytest.raises(QuantizerError, match=r"unknown quantizer 'paretok'[^$]*did you mean 'paretoq'"):
            by_name("paretok")

    def test_unknown_scale_start_names_the_nearest(self):
        with pytest.raises(QuantizerError, match="unknown scale start 'mxe'"):
            paretoq(2, scale_init="mxe")

    def test_group_that_does_not_divide_names_ones_that_do(self):
        with pytest.raises(QuantizerError, match=r"a group of 48 does not divide the 64 inputs[^$]*32, 64"):
            paretoq(2, granularity=48).init(W)

    @pytest.mark.parametrize("make", [rtn, paretoq, llmqat, lambda b, granularity: rtn(b, granularity, False)])
    @pytest.mark.parametrize("granularity", ["chanel", 0, True])
    def test_unknown_granularity(self, make, granularity):
        with pytest.raises(QuantizerError, match=f"unknown granularity {granularity!r}"):
            make(4, granularity=granularity)

    def test_vectors_are_refused(self):
        with pytest.raises(QuantizerError, match=r"shape \(64,\) is not a matrix"):
            paretoq(2).init(W[:, 0])

    @pytest.mark.parametrize("make", [lambda: llmqat(1), lambda: rtn(1, symmetric=False), lambda: rtn(9)])
    def test_widths_a_method_lacks(self, make):
        with pytest.raises(QuantizerError, match="bit"):
            make()

    def test_unknown_variant(self):
        with pytest.raises(QuantizerError, match="unknown variant 'paper'"):
            llmqat(4, variant="paper")

    def test_grid_must_ascend(self):
        with pytest.raises(QuantizerError, match="ascending order"):
            Grid("odd", (1.0, 0.0))

    def test_stored_dtype(self):
        with pytest.raises(QuantizerError, match="cannot be stored as 'int8'"):
            stored_as(jnp.int8)
