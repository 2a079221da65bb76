"""Runs whose activations are rounded: what the config says is what the forward pass does, on any mesh, and is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import formats
from lowbit.errors import ConfigError, LowbitError, QuantizerError, RuleError
from lowbit.llama import LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig
from lowbit.llama.activations import to_meta
from lowbit.models.activations import rounding_hooks
from lowbit.train import load_trained, prepare, run
from lowbit.train.activations import activation_rounding
from lowbit.train.blueprint import blueprint
from lowbit.train.learner import make_model
from lowbit.train.sources import load_as_it_predicts
from lowbit.tree import fake_quant

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

SIZES = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
W4A8KV4 = ("quant.method=llmqat", "quant.bits=4", "activations.bits=8", "activations.kv_bits=4")
STATIC = (*W4A8KV4, "activations.range=static", "activations.granularity=tensor", "activations.calibration=4")


def rounding(make, *overrides):
    return activation_rounding(make(*overrides).activations)


def test_rules_say_which_inputs_are_rounded_and_how(tiny_config):
    assert not rounding(tiny_config)
    some = rounding(
        tiny_config,
        "activations.bits=4",
        "activations.overrides=(('.*down_proj', {'bits': 8, 'symmetric': False}), ('.*/[kv]_proj', {'bits': 16}))",
    )
    inputs = dict(some.inputs)
    assert list(inputs) == [path for path in LINEARS if not path.endswith(("k_proj", "v_proj"))]
    assert inputs["layers/mlp/down_proj"] == InputRounding(8, symmetric=False)
    assert inputs["layers/attn/q_proj"] == InputRounding(4)
    assert some.cache is None
    held = rounding(
        tiny_config, "activations.kv_bits=4", "activations.kv_rotated=false", "activations.kv_per_head=false"
    )
    assert held.cache == CacheKind(4, True, per_head=False, rotated=False)
    assert held.inputs == ()


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("activations.bits=12", QuantizerError, "activations cannot be rounded to 12 bits"),
        ("activations.kv_bits=3", QuantizerError, "cache cannot hold keys and values of 3 bits\n  -> choose 4 or 8"),
        ("activations.variant=refrence", ConfigError, r"unknown activations\.variant 'refrence'\n  -> did you mean"),
        ("activations.range=statik,activations.bits=8", ConfigError, r"unknown activations\.range 'statik'\n  -> did"),
        ("activations.range=static,activations.bits=8", QuantizerError, "a static range for each token is no range"),
        ("activations.granularity=row,activations.bits=8", ConfigError, r"unknown activations\.granularity 'row'"),
        (
            "activations.range=static,activations.variant=reference,activations.bits=8",
            ConfigError,
            r"activations\.variant='reference' is a dynamic range",
        ),
        ("activations.overrides=(('x',),)", ConfigError, r"activations\.overrides holds \('x',\)\n  -> give pairs"),
        (
            "activations.overrides=(('.*/o_proj',{'bit': 8}),)",
            ConfigError,
            "unknown key 'bit'\n  -> did you mean 'bits'",
        ),
        ("activations.overrides=(('layers/o_proj',{'bits': 8}),)", RuleError, "matches nothing; the paths are layers/"),
        ("activations.calibration=0", ConfigError, r"activations\.calibration=0\n  -> give at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(tiny_config, override, kind, message):
    settings = [override] if "overrides" in override else override.split(",")
    with pytest.raises(kind, match=message) as refused:
        prepare(tiny_config(*settings, "data.train=missing.npy"))
    assert isinstance(refused.value, LowbitError)


def logits_of(trained):
    """The model on decoded weights, with hooks of its own: neither the quantizing transform nor a training step."""
    model = make_model(trained.config, trained.cfg, None).clone(hooks=rounding_hooks(trained.rounding))
    params = jax.jit(lambda p, s: fake_quant(trained.rules, p, s))(trained.params, trained.state)
    return model.apply({"params": params, "grid": trained.state["grid"]}, jnp.arange(24, dtype=jnp.int32)[None])


@pytest.mark.parametrize("settings", [pytest.param(W4A8KV4, marks=pytest.mark.slow), STATIC], ids=["dynamic", "static"])
def test_a_run_keeps_its_rounding_and_resumes_to_the_same_bits(tiny_config, tmp_path, settings):
    whole = run(tiny_config(*settings, f"run_folder={tmp_path / 'whole'}"))
    assert whole.finished
    trained = load_trained(tmp_path / "whole")
    experiment = prepare(tiny_config(*settings, f"run_folder={tmp_path / 'other'}"))
    assert trained.rounding == activation_rounding(trained.config.activations)
    if settings is STATIC:
        assert {path: own["scale"].shape for path, own in trained.ranges.items()} == dict.fromkeys(LINEARS, (2, 1, 1))
        # Of a few windows of the training data, and the same whoever calibrates.
        jax.tree.map(np.testing.assert_array_equal, trained.ranges, experiment.ranges)
    tokens = jnp.arange(24, dtype=jnp.int32)[None]
    variables = {"params": trained.params, **trained.state}
    inside = experiment.model.apply(variables, tokens)
    np.testing.assert_array_equal(inside, logits_of(trained))
    floats = make_model(trained.config, trained.cfg, trained.rules).apply(variables, tokens)
    assert np.abs(inside - floats).max() > 1e-3


def test_recomputed_rounding_gives_the_same_gradients(tiny_config):
    plain, again = (prepare(tiny_config(*W4A8KV4, f"model.remat={name}")) for name in ("none", "dots"))
    state, batch = plain.initial_state(), jnp.asarray(plain.train.batch(0))

    def gradient(experiment):
        return jax.jit(jax.grad(lambda params: experiment.objective({**state.variables, "params": params}, batch)[0]))(
            state.params["params"]
        )

    # The same numbers, and sums that the compiler may take in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *map(gradient, (plain, again)))


@pytest.mark.slow  # of rounding alone; meshes are in test_sharding
def test_a_mesh_does_not_change_what_is_computed(tiny_config):
    alone = prepare(tiny_config(*STATIC, "mesh.data=8"))
    cut = prepare(tiny_config(*STATIC, "mesh.fsdp=2", "mesh.tensor=2"))
    # Maxima are exact on every mesh; what they are maxima of went through sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), alone.ranges, cut.ranges)
    losses = [e.objective(e.initial_state().variables, jnp.asarray(e.train.batch(0)))[0] for e in (alone, cut)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_an_estimate_counts_the_ranges_of_the_run(tiny_config):
    config = tiny_config(*STATIC, "activations.granularity=channel", "activations.symmetric=false")
    experiment = prepare(config)
    planned = blueprint(config, experiment.cfg, experiment.mesh)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), e.abstract_state()) for e in (experiment, planned)]
    assert shapes[0] == shapes[1]
    down = experiment.abstract_state().constants["grid"]["layers"]["mlp"]["down_proj"]["input"]
    assert {key: leaf.shape for key, leaf in down.items()} == {"scale": (2, 1, 64), "zero": (2, 1, 64)}


def test_a_teacher_keeps_float_activations(tiny_config, tmp_path):
    run(tiny_config("quant.method=float", f"run_folder={tmp_path / 'float'}", "data.valid=", "train.tokens=256"))
    source = f"model.source={tmp_path / 'float'}"
    experiment = prepare(tiny_config(*W4A8KV4, source, "distill.weight=1.0"))
    batch = jnp.asarray(experiment.train.batch(0))
    _, metrics = experiment.objective(experiment.initial_state().variables, batch)
    assert metrics["divergence"] > 0
    untouched = prepare(tiny_config("quant.method=float", "quant.float_dtype=float32", source, "distill.weight=1.0"))
    _, metrics = untouched.objective(untouched.initial_state().variables, batch)
    np.testing.assert_allclose(metrics["divergence"], 0, atol=1e-4)  # the teacher in bfloat16


def test_a_run_with_rounded_activations_is_no_teacher_even_unnamed(tiny_config, tmp_path):
    """Where the chain of runs ends is a float run, whose weights are no float model."""
    settings = ("quant.method=float", "activations.bits=4", "data.valid=", "train.tokens=256")
    run(tiny_config(*settings, f"run_folder={tmp_path / 'rounded'}"))
    student = (f"model.source={tmp_path / 'rounded'}", "distill.weight=1.0")
    for named in ((), (f"distill.teacher={tmp_path / 'rounded'}",)):
        with pytest.raises(ConfigError, match=r"rounded was made for 4-bit inputs, and a teacher computes in floats"):
            prepare(tiny_config(*student, *named))


def test_a_packed_teacher_made_for_rounded_activations_is_refused(tiny_config, tmp_path):
    """Its weights alone would be another model."""
    kind = ActivationRounding((("layers/mlp/down_proj", InputRounding(8)),), None)
    floats = {"layers.0.attn_norm.scale": np.ones(4, np.float16)}
    for name, meta in (("rounded", to_meta(kind, {})), ("plain", {})):
        formats.write(tmp_path / f"{name}.lowbit", formats.PackedModel(floats, SIZES.to_hf(), {}, meta))
    with pytest.raises(
        ConfigError, match=r"rounded\.lowbit was made for .*, and a teacher computes in floats\n  -> name a"
    ):
        load_as_it_predicts(str(tmp_path / "rounded.lowbit"))
    with pytest.raises(LowbitError, match=r"is missing|lacks|no tensor"):  # read on, to what this file has not
        load_as_it_predicts(str(tmp_path / "plain.lowbit"))
