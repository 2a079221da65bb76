"""Parameter groups, decay, clipping and the peak in the state, against optax and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowbit.errors import ConfigError, RuleError
from lowbit.train.optimizers import (
    Group,
    adamw,
    assign_groups,
    default_groups,
    frozen_paths,
    leaf_paths,
    muon,
    with_peak,
    with_standard_promotion,
)
from lowbit.train.schedules import make_schedule, stop_after
from lowbit.tree import Rule

PARAMS = {
    "params": {
        "layers": {
            "attn": {"q_proj": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}},
            "attn_norm": {"scale": jnp.ones((2, 3))},
        },
        "norm": {"scale": jnp.ones(3)},
    },
    "quant": {"layers": {"attn": {"q_proj": {"kernel": {"scale": jnp.ones((2, 1, 4))}}}}},
}
KERNEL = "params/layers/attn/q_proj/kernel"
SCALE = "quant/layers/attn/q_proj/kernel/scale"
CONSTANT = make_schedule("constant", 10)


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def groups(**settings):
    return assign_groups(default_groups(leaf_paths(PARAMS), **settings), PARAMS)


def test_default_groups_decay_matrices_alone_and_give_scales_their_rate():
    got = groups(weight_decay=0.1, scale_learning_rate=0.3)
    assert got[KERNEL] == Group(weight_decay=0.1)
    assert got[SCALE] == Group(learning_rate=0.3)
    for path in ("layers/attn/q_proj/bias", "layers/attn_norm/scale", "norm/scale"):
        assert got[f"params/{path}"] == Group()


def test_equals_optax_adamw_where_all_are_alike():
    alike = dict.fromkeys(leaf_paths(PARAMS), Group(weight_decay=0.1))
    ours = adamw(CONSTANT, 1e-2, alike, b1=0.9, b2=0.95, clip_norm=1.0)
    theirs = with_standard_promotion(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, 0.9, 0.95, weight_decay=0.1))
    )
    a, b = PARAMS, PARAMS
    state_a, state_b = ours.init(PARAMS), theirs.init(PARAMS)
    for step in range(3):
        update_a, state_a = ours.update(gradients(step), state_a, a)
        update_b, state_b = theirs.update(gradients(step), state_b, b)
        a, b = optax.apply_updates(a, update_a), optax.apply_updates(b, update_b)
    # The factor -lr is applied to the same numbers in the same order: one rounding at most.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_group_factor_scales_the_step():
    optimizer = adamw(CONSTANT, 1e-2, groups(scale_learning_rate=0.25), clip_norm=None)
    updates, _ = optimizer.update(gradients(), optimizer.init(PARAMS), PARAMS)
    # Adam's first step has the size of the learning rate wherever |gradient| >> eps.
    kernel = updates["params"]["layers"]["attn"]["q_proj"]["kernel"]
    scale = updates["quant"]["layers"]["attn"]["q_proj"]["kernel"]["scale"]
    np.testing.assert_allclose(jnp.abs(kernel), 1e-2, rtol=1e-4)
    np.testing.assert_allclose(jnp.abs(scale), 0.25e-2, rtol=1e-4)


def test_a_group_may_follow_a_schedule_of_its_own():
    falling = make_schedule("linear", 4)
    optimizer = adamw(falling, 1e-2, groups(scale_schedule=stop_after(CONSTANT, 3)), clip_norm=None)
    state = optimizer.init(PARAMS)
    for step, (share, own) in enumerate([(1.0, 1.0), (0.75, 1.0), (0.5, 1.0), (0.25, 0.0)]):
        updates, state = optimizer.update(gradients(), state, PARAMS)
        moved = dict(zip(leaf_paths(PARAMS), jax.tree.leaves(updates), strict=True))
        # Of a constant gradient Adam makes steps of the learning rate.
        np.testing.assert_allclose(jnp.abs(moved[KERNEL]), share * 1e-2, rtol=1e-4)
        np.testing.assert_allclose(jnp.abs(moved[SCALE]), own * 1e-2, rtol=1e-4)
        np.testing.assert_allclose(optax.tree.get(state, "learning_rate"), share * 1e-2, rtol=1e-6)
        assert int(optax.tree.get(state, "taken")) == step + 1


def test_peak_is_state():
    optimizer = adamw(CONSTANT, 1e-2, groups())
    state = with_peak(optimizer.init(PARAMS), 5e-2)
    _, state = optimizer.update(gradients(), state, PARAMS)
    np.testing.assert_allclose(optax.tree.get(state, "learning_rate"), 5e-2, rtol=1e-6)
    with pytest.raises(KeyError, match="peak"):
        with_peak(optax.sgd(0.1).init(PARAMS), 1.0)


def test_muon_moves_kernels_along_orthogonal_matrices_of_adamws_size_and_the_rest_as_adamw_does():
    optimizer = muon(CONSTANT, 1e-2, groups(orthogonal=True), momentum=0.9, clip_norm=None)
    state = optimizer.init(PARAMS)
    plain = adamw(CONSTANT, 1e-2, groups(), clip_norm=None)
    plain_state = plain.init(PARAMS)
    for step in range(2):
        updates, state = optimizer.update(gradients(step), state, PARAMS)
        wanted, plain_state = plain.update(gradients(step), plain_state, PARAMS)
    moved, wanted = (dict(zip(leaf_paths(PARAMS), jax.tree.leaves(tree), strict=True)) for tree in (updates, wanted))
    for path in moved:
        if path != KERNEL:
            np.testing.assert_array_equal(moved[path], wanted[path])
    assert [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 3].count(
        (2, 3, 4)
    ) == 1  # one moment, not two

    # The momentum by hand: m = b m + (1 - b) g; Nesterov looks one step ahead, with both terms freed of their bias.
    first, second = (g["params"]["layers"]["attn"]["q_proj"]["kernel"] for g in (gradients(0), gradients(1)))
    m = 0.9 * 0.1 * first + 0.1 * second
    ahead = 0.9 * m / (1 - 0.9**3) + 0.1 * second / (1 - 0.9**2)
    for u, direction in zip(moved[KERNEL], np.asarray(ahead), strict=True):
        left, _, right = np.linalg.svd(direction, full_matrices=False)
        inside = left.T @ np.asarray(u) @ right.T
        # The five steps take singular values to between 0.68 and 1.13, and keep singular vectors (to float32 rounding).
        size = 1e-2 * 0.2 * 4**0.5
        values = -np.diag(inside) / size
        assert (values > 0.6).all()
        assert (values < 1.2).all()
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=size * 1e-4)


def test_muon_groups_are_the_kernels_of_layers_and_its_peak_is_state():
    got = groups(orthogonal=True, weight_decay=0.1)
    assert [path for path, group in got.items() if group.orthogonal] == [KERNEL]
    assert got[KERNEL] == Group(weight_decay=0.1, orthogonal=True)
    optimizer = muon(CONSTANT, 1e-2, got)
    rates = jnp.asarray([1e-3, 3e-3])
    start = optimizer.init(PARAMS)

    def update(rate):
        return optimizer.update(gradients(), with_peak(start, rate), PARAMS)[0]

    both = jax.vmap(update)(rates)
    # The same arithmetic batched: products of at most 4 terms, thirty in a row, a few roundings each.
    for i, rate in enumerate(rates):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4), both, update(rate))


def test_frozen_leaves_are_named_and_something_must_be_left():
    rules = [Rule("params/.*", Group(frozen=True)), Rule("quant/.*", Group())]
    assert SCALE not in frozen_paths(assign_groups(rules, PARAMS))
    assert KERNEL in frozen_paths(assign_groups(rules, PARAMS))
    with pytest.raises(ConfigError, match="every parameter is in a frozen group"):
        frozen_paths(assign_groups([Rule(".*", Group(frozen=True))], PARAMS))


def test_default_groups_give_all_but_the_kernels_of_layers_a_rate_of_their_own():
    rates = {path: group.learning_rate for path, group in groups(float_learning_rate=0.1).items()}
    kernels = {path for path in rates if path.startswith("params/layers/") and path.endswith("/kernel")}
    scales = {path for path in rates if path.startswith("quant/")}
    assert kernels
    assert all(rates[path] == 1.0 for path in kernels | scales)
    assert {rates[path] for path in set(rates) - kernels - scales} == {0.1}


def test_default_groups_leave_out_what_earlier_rules_take():
    rules = default_groups(leaf_paths(PARAMS), after=["params/.*"])
    assert [rule.pattern for rule in rules] == ["quant/.*"]
    no_scales = default_groups(leaf_paths({"params": PARAMS["params"], "quant": {}}))
    assert all(rule.pattern.startswith("params") for rule in no_scales)


def test_bad_groups_are_refused():
    with pytest.raises(RuleError, match="matches nothing"):
        assign_groups([Rule("parms/.*", Group()), Rule(".*", Group())], PARAMS)
    with pytest.raises(ConfigError, match="weight_decay=-1"):
        Group(weight_decay=-1.0)
    with pytest.raises(ConfigError, match="clipped to a norm of 0"):
        adamw(CONSTANT, 1e-3, groups(), clip_norm=0.0)
    with pytest.raises(ConfigError, match=r"learning rate -1\.0 is negative"):
        adamw(CONSTANT, -1.0, groups())
