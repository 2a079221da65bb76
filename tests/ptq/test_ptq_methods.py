"""Each method as a pure function of one kernel: against brute force, reference figures, and what it promises."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.numerics.quantizers.codebook import nf4, power_levels
from lowbit.ptq import METHODS, Options, make_target, method_by_name
from lowbit.ptq.gptq import block_size, check_valid, inverse_factor
from lowbit.ptq.kmeans import centroids
from lowbit.ptq.methods import check
from lowbit.ptq.moments import output_error
from lowbit.ptq.ranges import with_zero

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PATH = "mlp/down_proj/kernel"

ENTRIES = [
    ("integer", 1, "channel"),
    ("integer", 1.58, 16),
    ("zero_point", 2, 8),
    ("paretoq", 1.58, "channel"),
    ("paretoq", 2, "channel"),
    ("nf4", 4, 16),
    ("power", 3, "channel"),
]


def rounded(method, w, seen, grid, bits, granularity, **options):
    row = method_by_name(method)
    target = make_target(grid, bits, granularity, row.ranges[0])
    check(row, target, Options(**options), w.shape[:1])
    return row.round(PATH, w, seen, target, Options(**options))


def error(seen, w, w_hat):
    return float(jnp.sum(output_error(seen.gram, w - w_hat)))


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_gptq_errs_less_than_rounding_on_every_grid(entry, kernel, seen):
    plain = rounded("rtn", kernel, seen, *entry)
    better = rounded("gptq", kernel, seen, *entry)
    assert better.valid
    # On inputs of eight directions and some noise compensation is worth a third at the least.
    assert error(seen, kernel, better.w_hat) < 0.67 * error(seen, kernel, plain.w_hat)
    # What trains on: the masters round to the result, and their codes decode to it.
    assert jnp.array_equal(better.quantizer.fake(better.masters, better.state), better.w_hat)
    assert jnp.array_equal(better.quantizer.encode(better.masters, better.state).decode(), better.w_hat)


def test_gptq_orders_and_groups(kernel, seen):
    errors = {
        name: error(seen, kernel, rounded("gptq", kernel, seen, "integer", 3, granularity, **options).w_hat)
        for name, granularity, options in [
            ("channel", "channel", {}),
            ("ordered", "channel", {"act_order": True}),
            ("static", 8, {"static_groups": True}),
            ("ordered groups", 8, {"static_groups": True, "act_order": True}),
        ]
    }
    assert len(set(errors.values())) == 4
    plain = {g: error(seen, kernel, rounded("rtn", kernel, seen, "integer", 3, g).w_hat) for g in ("channel", 8)}
    assert max(errors["channel"], errors["ordered"]) < 0.67 * plain["channel"]
    assert max(errors["static"], errors["ordered groups"]) < 0.67 * plain[8]
    # A group's scales from the weights at the start are those of plain rounding.
    start = rounded("rtn", kernel, seen, "integer", 3, 8).state["scale"]
    kept = rounded("gptq", kernel, seen, "integer", 3, 8, static_groups=True, act_order=True).state["scale"]
    assert jnp.array_equal(start, kept)


def test_factor_is_that_of_the_inverse(seen):
    h = seen.gram + 0.1 * jnp.eye(32)
    upper = np.asarray(inverse_factor(h), np.float64)
    assert np.array_equal(upper, np.triu(upper))
    # float32 carries 24 bits, of which the condition of h takes its share.
    bound = 32 * 2.0**-24 * np.linalg.cond(np.asarray(h, np.float64))
    np.testing.assert_allclose(upper.T @ upper @ np.asarray(h, np.float64), np.eye(32), atol=bound)


@pytest.mark.parametrize(("k", "group", "size"), [(576, None, 96), (1536, None, 128), (96, 32, 96), (512, 256, 256)])
def test_blocks_hold_whole_groups(k, group, size):
    assert block_size(k, group) == size


def test_a_hessian_without_damping_may_be_singular(kernel, seen):
    flat = seen._replace(gram=jnp.ones((32, 32)))
    result = rounded("gptq", kernel, flat, "integer", 3, "channel", damping=0.0)
    with pytest.raises(QuantizerError, match=r"Hessian of the inputs of x is singular at damping 0\n  -> raise"):
        check_valid(result.valid, "x", Options(damping=0.0))


@pytest.mark.parametrize("entry", [("zero_point", 2, 8), ("zero_point", 4, 16), ("integer", 3, "channel")], ids=str)
def test_distilled_kernels_give_outputs_nearer_to_the_float_ones(entry, kernel, seen):
    row, target = method_by_name("lkd"), make_target(*entry, "mse")
    plain = METHODS["rtn"].round(PATH, kernel, seen, target, Options())
    learned = row.round(PATH, kernel, seen, target, Options())
    # From 0.5 at 4 bits to 0.9 at 2, where many weights lie beyond the range and get no gradient.
    assert error(seen, kernel, learned.w_hat) < 0.95 * error(seen, kernel, plain.w_hat)
    assert jnp.array_equal(learned.state["scale"], plain.state["scale"])
    assert jnp.array_equal(learned.quantizer.fake(learned.masters, learned.state), learned.w_hat)
    assert jnp.array_equal(learned.quantizer.encode(learned.masters, learned.state).decode(), learned.w_hat)


def test_greedy_paths_are_those_of_the_definition(inputs, kernel, seen):
    x = inputs.astype(np.float64)
    y = x + 0.05 * np.random.default_rng(5).standard_normal(x.shape)
    moments = seen._replace(cross=jnp.asarray((x.T @ y / len(x)).astype(np.float32)))
    result = rounded("gpfq", kernel, moments, "integer", 4, "channel")
    w, u, expected = np.asarray(kernel, np.float64), np.zeros((len(x), 16)), np.zeros((32, 16))
    for t in range(32):
        u += np.outer(y[:, t], w[t])
        power = x[:, t] @ x[:, t]
        argument = x[:, t] @ u / power if power > 0 else w[t]
        row = jnp.asarray(argument.astype(np.float32))[None]
        expected[t] = result.quantizer.fake(row, result.state)[0]
        u -= np.outer(x[:, t], expected[t])
    # Sums in another order may cross a tie; what follows in that output may then differ.
    assert (np.abs(expected - np.asarray(result.w_hat)).max(axis=0) < 1e-5).mean() > 0.9
    assert error(seen, kernel, result.w_hat) < error(
        seen, kernel, rounded("rtn", kernel, seen, "integer", 4, "channel").w_hat
    )


def test_half_quadratic_zeros_leave_less_than_min_max(kernel):
    target = make_target("float_zero", 2, 8, "max")
    plain = target.quantizer.fake(kernel, target.quantizer.init(kernel))
    result = rounded("hqq", kernel, None, "float_zero", 2, 8)
    size = [jnp.mean(jnp.abs(kernel - w).reshape(4, 8, 16), axis=1) for w in (plain, result.w_hat)]
    assert (size[1] <= size[0]).all()
    assert size[1].sum() < 0.95 * size[0].sum()
    assert jnp.array_equal(result.quantizer.encode(kernel, result.state).decode(), result.w_hat)


def test_normal_float_is_that_of_the_reference():
    data = np.load(GOLDEN / "nf4.npz")
    w = jnp.asarray(data["weight"].T)  # its blocks of 64 run along the inputs
    quantizer = nf4(64, jnp.float32)
    state = quantizer.init(w)
    np.testing.assert_array_equal(np.asarray(state["scale"]).T.reshape(-1), data["absmax"])
    np.testing.assert_array_equal(np.asarray(quantizer.encode(w, state).decode()).T, data["dequant"])


def test_powers_of_two():
    assert power_levels(2) == (-1.0, 0.0, 1.0)
    assert power_levels(3) == (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    assert len(power_levels(4)) == 15


@pytest.mark.parametrize("bits", [2, 4])
def test_ranges_with_a_zero_point(bits, kernel):
    w = kernel.at[0, 0].set(30.0)

    def left(name):
        target = make_target("zero_point", bits, "channel", name)
        return jnp.sum(jnp.square(w - target.quantizer.fake(w, target.quantizer.init(w))), axis=0)

    assert (left("mse") <= left("max")).all()
    assert left("mse").sum() < left("max").sum()
    percentile = with_zero(bits, "channel", "percentile", jnp.float16)(w)
    everything = with_zero(bits, "channel", "max", jnp.float16)(w)
    assert percentile["scale"][0, 0] < everything["scale"][0, 0]


def test_centroids_are_those_of_lloyd():
    values = np.sort(np.random.default_rng(3).standard_normal(200)).astype(np.float32)
    levels = np.linspace(values[0], values[-1], 4).astype(np.float64)
    for _ in range(40):
        nearest = np.abs(values[:, None] - levels[None]).argmin(axis=1)
        levels = np.asarray([values[nearest == i].mean() if (nearest == i).any() else levels[i] for i in range(4)])
    # Means of up to 200 numbers as differences of float32 sums of size up to 100.
    np.testing.assert_allclose(centroids(jnp.asarray(values), 4), levels, atol=200 * 2.0**-24 * 100)


def test_shared_values_are_found(kernel):
    w = jnp.asarray([-2.0, -0.5, 1.0, 2.0])[jnp.asarray(np.random.default_rng(4).integers(0, 4, (32, 16)))]
    result = rounded("kmeans", w, None, "free", 2, "tensor")
    np.testing.assert_allclose(result.w_hat, w, rtol=1e-6)
    channel = rounded("kmeans", kernel, None, "free", 3, "channel")
    assert jnp.sum(jnp.square(kernel - channel.w_hat)) < jnp.sum(
        jnp.square(kernel - rounded("rtn", kernel, None, "integer", 3, "channel").w_hat)
    )
    assert rounded("kmeans", jnp.ones((32, 16)), None, "free", 2, "tensor").w_hat.min() == 1.0


def test_vectors_share_codes(kernel):
    words = np.random.default_rng(4).standard_normal((6, 4)).astype(np.float32)
    drawn = np.stack([words[np.random.default_rng(i).permutation(6)[:8]] for i in range(16)], axis=2)
    w = jnp.asarray(drawn.reshape(-1, 16))  # 24 inputs: each column has each word once, so all have one scale
    result = rounded("product", w, None, "vectors", 2, "channel")
    # Enough centroids for all vectors: what is left is the rounding of tables to float16.
    np.testing.assert_allclose(result.w_hat, w, atol=4 * 2.0**-11)
    errors = [
        float(jnp.sum(jnp.square(kernel - rounded(method, kernel, None, "vectors", bits, "channel").w_hat)))
        for method, bits in [("product", 1), ("residual", 1), ("residual", 2), ("residual", 3)]
    ]
    assert errors[1] > errors[2] > errors[3]
    assert errors[0] < float(jnp.sum(jnp.square(kernel)))
    # An index of 8 bits for 8 weights, at most 64 of the 256 x 8 values used, and a scale a column.
    assert rounded("product", kernel, None, "vectors", 1, "channel").bits == 1.0 + 256 * 8 * 16 / 512 + 16 / 32


def test_outliers_stay(kernel, seen):
    result = rounded("int8_outliers", kernel, seen, "integer", 8, "channel")
    outlier = np.asarray(seen.max_abs) > 6.0
    assert 0 < outlier.sum() < 32
    np.testing.assert_array_equal(result.w_hat[outlier], kernel[outlier].astype(jnp.float16).astype(jnp.float32))
    share = outlier.mean()
    assert result.bits == pytest.approx((1 - share) * 8 + share * (16 + 2) + 16 / 32)
    assert error(seen, kernel, result.w_hat) < error(
        seen, kernel, rounded("rtn", kernel, None, "integer", 8, "channel").w_hat
    )


def test_clipping_lowers_the_error_of_outputs(kernel, seen):
    plain = rounded("rtn", kernel, seen, "zero_point", 2, "channel")
    target = make_target("zero_point", 2, "channel", "max")
    clipped = METHODS["awq"].round(PATH, kernel, seen, target, Options())
    unclipped = METHODS["awq"].round("attn/q_proj/kernel", kernel, seen, target, Options())
    assert error(seen, kernel, clipped.w_hat) < error(seen, kernel, plain.w_hat)
    assert jnp.array_equal(unclipped.w_hat, target.quantizer.fake(kernel, target.quantizer.init(kernel)))


@pytest.mark.parametrize(
    ("method", "entry", "options", "message"),
    [
        ("hqq", ("integer", 4, "channel", "max"), {}, "hqq cannot round to the grid 'integer'\n  -> choose from float"),
        ("awq", ("integer", 4, "channel", "mse"), {}, "awq has no choice of the range 'mse'"),
        ("zeroquant", ("integer", 4, "channel", "max"), {}, "zeroquant has scales per group"),
        ("gptq", ("integer", 4, 5, "mse"), {}, "a group of 5 does not divide the 32 inputs"),
        ("gptq", ("integer", 4, 8, "mse"), {"act_order": True}, "act order would make groups of 8 inputs that do not"),
        ("gptq", ("integer", 4, 8, "mse"), {"damping": -1.0}, "a damping of -1"),
        (
            "gptq",
            ("integer", 4, 8, "mse"),
            {"token_weights": "atention"},
            "unknown weights 'atention' of tokens\n  -> did you mean 'attention'",
        ),
        ("smoothquant", ("integer", 4, 8, "mse"), {"alpha": 2.0}, "an alpha of 2"),
        ("int8_outliers", ("integer", 8, "channel", "max"), {"threshold": float("nan")}, "a threshold of nan"),
        ("product", ("vectors", 1, "channel", "max"), {}, "vectors of 8 weights do not divide 36 inputs"),
        ("residual", ("vectors", 2, "channel", "max"), {}, "vectors of 4 weights do not divide 34 inputs"),
        ("gptq", ("nf4", 4, 16, "max", True), {}, "it chooses as it goes.*\n  -> double scales with one of rtn, zero"),
    ],
)
def test_what_cannot_be_is_refused(method, entry, options, message):
    inputs = {"product": (36,), "residual": (34,)}.get(method, (32,))
    with pytest.raises(QuantizerError, match=message):
        check(method_by_name(method), make_target(*entry), Options(**options), inputs)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("interger", 4, "channel", "max"), "unknown grid 'interger'\n  -> did you mean 'integer'"),
        (("integer", 9, "channel", "max"), "the grid 'integer' has no 9 bits\n  -> choose from 1, 1.58, 2"),
        (("nf4", 3, 64, "max"), "the grid 'nf4' has no 3 bits"),
        (("integer", 4, "row", "max"), "unknown granularity 'row'"),
        (("integer", 4, "channel", "maxx"), "unknown range 'maxx'"),
        (("free", 4, "channel", "max", True), "the grid 'free' has no scales of groups"),
        (("integer", 4, "tensor", "max", True), "rtn4 has no scales of groups or outputs that could be quantized"),
    ],
)
def test_targets_are_checked(entry, message):
    with pytest.raises(QuantizerError, match=message):
        make_target(*entry)


def test_unknown_methods_name_the_nearest():
    with pytest.raises(QuantizerError, match="unknown method 'gtpq'\n  -> did you mean 'gptq'"):
        method_by_name("gtpq")
