"""The laws: one suite that every quantizer must pass. A new quantizer is one more row in `CASES`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.numerics.activations import dynamic, static
from lowbit.numerics.quantizers import (
    QUANTIZERS,
    absmean_ternary,
    doubled,
    fixed,
    llmqat,
    nf4,
    onebit,
    paretoq,
    rtn,
    transposed,
)

CASES = {
    **{f"paretoq{b:g}": functools.partial(paretoq, b) for b in (1, 1.58, 2, 3, 4)},
    "paretoq2_max": functools.partial(paretoq, 2, scale_init="max"),
    "paretoq2_bf16_scales": functools.partial(paretoq, 2, scale_dtype=jnp.bfloat16),
    **{f"rtn{b:g}": functools.partial(rtn, b) for b in (1, 1.58, 2, 3, 4, 8)},
    **{f"rtn{b:g}_minmax": functools.partial(rtn, b, symmetric=False) for b in (2, 3, 4, 8)},
    "rtn3_mse": functools.partial(rtn, 3, scale_init="mse", learns=True),
    "rtn2_minmax_learns": functools.partial(rtn, 2, symmetric=False, learns=True),
    **{f"llmqat{b:g}": functools.partial(llmqat, b) for b in (2, 4, 8)},
    "llmqat4_reference": functools.partial(llmqat, 4, variant="reference"),
    "absmean_ternary": absmean_ternary,
    "nf4": functools.partial(nf4, granularity="channel"),
    **{f"onebit_{start}": functools.partial(onebit, scale_init=start) for start in ("nmf", "svd", "mean")},
}
# OneBit's two vectors are of all weights together: its outputs are not each other's strangers, and its gradient is no
# cut one. What it obeys instead is in test_onebit.py.
ONE_SCALE = {name: make for name, make in CASES.items() if not name.startswith("onebit")}


def of_tokens(make, granularity="channel"):
    """Activations whose tokens are the columns of [k n], so that they meet the laws of weights; they have no groups."""
    q = make("tensor" if granularity == "tensor" else "token" if make.func is dynamic else "channel")
    return transposed(q) if make.func is dynamic else q


def activations(*args, **kwargs):
    return functools.partial(of_tokens, functools.partial(*args, **kwargs))


ACTIVATIONS = {
    "activations8": activations(dynamic, 8),
    "activations8_minmax": activations(dynamic, 8, symmetric=False),
    "activations4_llmqat": activations(dynamic, 4, variant="reference"),
    "activations4_llmqat_minmax": activations(dynamic, 4, symmetric=False, variant="reference"),
    "cache4_minmax": activations(dynamic, 4, symmetric=False, scale_dtype=jnp.float16),
    "activations8_static": activations(static, 8),
    "activations4_static_minmax": activations(static, 4, symmetric=False),
}


def fixed_codes(*args, **kwargs):
    return lambda **others: fixed(functools.partial(*args, **kwargs)(**others))


FIXED = {
    "fixed_paretoq2": fixed_codes(paretoq, 2, scale_init="max"),
    "fixed_rtn3": fixed_codes(rtn, 3),
    "fixed_rtn4_minmax": fixed_codes(rtn, 4, symmetric=False),
}


def twice(make):
    """Scales that are coded themselves: of outputs or groups, so that one scale a matrix becomes one of 4 inputs."""
    return lambda granularity="channel": doubled(make(granularity=4 if granularity == "tensor" else granularity))


# Scales of all outputs and groups share a mean and steps: neither are strangers to each other.
DOUBLED = {
    "doubled_paretoq2": twice(functools.partial(paretoq, 2, scale_init="max")),
    "doubled_rtn4_minmax": twice(functools.partial(rtn, 4, symmetric=False)),
    "doubled_llmqat4": twice(functools.partial(llmqat, 4)),
    "doubled_nf4": twice(nf4),
    "doubled_fixed_rtn3": lambda granularity="channel": fixed(twice(functools.partial(rtn, 3))(granularity)),
}
GRANULARITIES = ["channel", "tensor", 8]
EVERY_OF_ONE_SCALE = ONE_SCALE | ACTIVATIONS | FIXED
EVERY = CASES | ACTIVATIONS | FIXED | DOUBLED
every_case = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
every_case_with_groups = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
every_case_of_one_scale = pytest.mark.parametrize("make", EVERY_OF_ONE_SCALE.values(), ids=EVERY_OF_ONE_SCALE.keys())
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def test_every_quantizer_is_a_row():
    makers = {getattr(make, "func", make) for make in CASES.values()}
    assert makers == set(QUANTIZERS.values())


def weights(shape=(32, 12), seed=0):
    """Heavy-tailed weights with the awkward ones: a zero channel, an outlier, repeated values that tie."""
    w = 0.05 * np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32)
    w[..., :, 1] = 0.0
    w[..., 0, 2] = 3.0
    w[..., :, 3] = np.where(np.arange(shape[-2]) % 2, 0.25, -0.25)
    return jnp.asarray(w)


def bits_of(x):
    """The raw bits: unlike ==, they tell 0 from -0."""
    return np.asarray(x).view(np.uint32)


@every_granularity
@every_case
def test_what_you_train_is_what_you_ship(make, granularity):
    q, w = make(granularity=granularity), weights()
    state = q.init(w)
    decoded = bits_of(q.encode(w, state).decode())
    np.testing.assert_array_equal(bits_of(q.fake(w, state)), decoded)
    np.testing.assert_array_equal(bits_of(jax.jit(q.fake)(w, state)), decoded)
    np.testing.assert_array_equal(bits_of(jax.jit(lambda w, s: q.encode(w, s).decode())(w, state)), decoded)


@settings(max_examples=60, deadline=None)
@given(
    w=hnp.arrays(np.float32, (8, 3), elements=st.floats(-100, 100, width=32, allow_subnormal=False)),
    name=st.sampled_from(sorted(EVERY)),
)
def test_what_you_train_is_what_you_ship_for_any_weights(w, name):
    q, w = EVERY[name](), jnp.asarray(w)
    state = q.init(w)
    kept = q.encode(w, state)
    assert int(jnp.max(kept.codes)) < len(q.grid.levels)
    np.testing.assert_array_equal(q.fake(w, state), kept.decode())


@every_granularity
@every_case
def test_encoding_what_was_decoded_changes_no_code(make, granularity):
    q, w = make(granularity=granularity), weights()
    state = q.init(w)
    once = q.encode(w, state)
    np.testing.assert_array_equal(q.encode(once.decode(), state).codes, once.codes)


# LLM-QAT's reference adds an absolute 1e-6 to the maximum: it alone is not equivariant.
@pytest.mark.parametrize("name", [name for name in EVERY if "llmqat4_reference" not in name and "_llmqat" not in name])
def test_scaling_by_a_power_of_two_is_exact(name):
    q, w = EVERY[name](granularity=8), weights()
    w = w.at[:, 1].set(w[:, 0])  # the floor of an all-zero group's scale does not scale
    plain, scaled = q.encode(w, q.init(w)), q.encode(w * 4, q.init(w * 4))
    np.testing.assert_array_equal(plain.codes, scaled.codes)
    np.testing.assert_array_equal(plain.decode() * 4, scaled.decode())


@pytest.mark.parametrize("granularity", ["channel", 8])
@every_case_of_one_scale
def test_outputs_are_permuted_with_their_weights(make, granularity):
    q, w = make(granularity=granularity), weights()
    order = np.random.default_rng(1).permutation(w.shape[-1])
    permuted = q.encode(w[:, order], q.init(w[:, order])).decode()
    np.testing.assert_array_equal(permuted, q.encode(w, q.init(w)).decode()[:, order])


@every_case_with_groups
def test_groups_are_independent(make):
    q, w = make(granularity=8), weights()
    changed = w.at[:8].multiply(7.0)
    before, after = (q.encode(x, q.init(x)).decode() for x in (w, changed))
    np.testing.assert_array_equal(before[8:], after[8:])


@every_case_of_one_scale
def test_the_nearest_level_is_chosen(make):
    q, w = make(), weights()
    kept = q.encode(w, q.init(w))
    scale = np.asarray(kept.scale, np.float64)
    zero = np.zeros_like(scale) if kept.zero is None else np.asarray(kept.zero, np.float64)
    levels = (np.asarray(q.grid.levels)[:, None, None] - zero) * scale
    error = np.abs(np.asarray(w, np.float64) - np.asarray(kept.decode(), np.float64))
    least = np.abs(np.asarray(w, np.float64) - levels).min(axis=0)
    # w/scale and the level times the scale are each rounded once: ties may fall either way within that.
    size = np.abs(np.asarray(w, np.float64))
    assert np.all(error <= least * (1 + 2**-20) + scale * 2**-20 + size * 2**-22)


@pytest.mark.parametrize(("family", "widths"), [(rtn, (2, 3, 4, 8)), (paretoq, (1, 2, 3, 4))], ids=["rtn", "paretoq"])
def test_error_falls_with_bits_and_with_smaller_groups(family, widths):
    w = jnp.asarray(np.random.default_rng(3).standard_normal((256, 16)).astype(np.float32))

    def error(bits, granularity):
        q = family(bits, granularity)
        return float(jnp.mean(jnp.square(w - q.fake(w, q.init(w)))))

    by_bits = [error(bits, "channel") for bits in widths]
    assert by_bits == sorted(by_bits, reverse=True)
    by_groups = [error(4, granularity) for granularity in ("tensor", "channel", 64, 16)]
    assert by_groups == sorted(by_groups, reverse=True)


@every_case
def test_abstract_evaluation_gives_the_true_shapes_and_dtypes(make):
    q, w = make(granularity=8), weights()

    def run(w):
        state = q.init(w)
        return state, q.fake(w, state), q.encode(w, state)

    abstract = jax.eval_shape(run, w)
    concrete = run(w)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(lambda a: (a.shape, a.dtype), concrete)


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_is_kept(make, dtype):
    q, w = make(), weights().astype(dtype)

    def run(w):
        w_hat, vjp = jax.vjp(lambda w: q.fake(w, q.init(w)), w)
        return w_hat, *vjp(jnp.ones_like(w_hat))

    # What is traced has the dtypes of what is computed, as the law above says.
    assert [x.dtype for x in jax.eval_shape(run, w)] == [dtype, dtype]


@every_case
def test_stacked_layers_equal_vmap_scan_and_one_by_one(make):
    q, w = make(), jnp.stack([weights(seed=s) for s in range(3)])
    state = q.init(w)
    together = q.fake(w, state)
    one_by_one = jnp.stack([q.fake(w[i], jax.tree.map(lambda s, i=i: s[i], state)) for i in range(3)])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(together, jax.vmap(q.fake)(w, state))
    _, scanned = jax.lax.scan(lambda c, x: (c, jax.checkpoint(q.fake)(*x)), 0, (w, state))
    np.testing.assert_array_equal(together, scanned)


@every_case_of_one_scale
def test_the_start_of_stacked_layers_is_that_of_each(make):
    q, w = make(), jnp.stack([weights(seed=s) for s in range(3)])
    state = q.init(w)
    fresh = jax.vmap(q.init)(w)
    np.testing.assert_allclose(*map(jax.tree.leaves, (fresh, state)), rtol=2**-22)


@every_case
def test_gradients_are_alike_under_remat_vmap_and_jit(make):
    q, w = make(), jnp.stack([weights(seed=s) for s in range(2)])
    state = q.init(w)
    c = jnp.asarray(np.random.default_rng(5).standard_normal(w.shape).astype(np.float32))

    def loss(w, state, c):
        return jnp.vdot(q.fake(w, state), c)

    plain = jax.grad(loss)(w, state, c)
    np.testing.assert_array_equal(plain, jax.jit(jax.grad(jax.checkpoint(loss)))(w, state, c))
    np.testing.assert_array_equal(plain, jax.vmap(jax.grad(loss))(w, state, c))


@every_case
def test_no_recompilation_on_the_second_step(make):
    q, w = make(), weights()
    traces = []

    @jax.jit
    def step(w, state):
        traces.append(1)
        return w - 0.1 * jax.grad(lambda w: jnp.sum(q.fake(w, state) ** 2))(w)

    state = q.init(w)
    step(step(w, state), jax.tree.map(lambda s: s + 0, state))
    assert len(traces) == 1


@every_case
def test_sharding_is_kept_and_changes_no_bit(make):
    mesh = jax.make_mesh((2, 4), ("k", "n"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("k", "n"))
    q, w = make(granularity=8), weights()
    state = q.init(w)
    sharded = jax.jit(q.fake, in_shardings=(sharding, None), out_shardings=sharding)(jax.device_put(w, sharding), state)
    assert sharded.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(sharded, q.fake(w, state))


@every_case_of_one_scale
def test_gradients_are_finite_at_zeros_ties_and_clip_edges(make):
    q = make()
    state = jax.tree.map(jnp.ones_like, q.init(weights()))
    edges = jnp.asarray([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 0.99, -0.99, 1.5, -1.5, 7.0, -8.0], jnp.float32)
    w = jnp.tile(edges[None], (32, 1))
    grads = jax.grad(lambda w, s: jnp.sum(q.fake(w, s)), argnums=(0, 1))(w, state)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    assert set(np.unique(grads[0])) <= {0.0, 1.0}  # a straight-through estimator passes all or nothing
