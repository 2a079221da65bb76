"""Every divergence, and the losses between insides, against their formulas in float64 and their slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.distill import Mix, distill
from lowbit.distill.losses import DIVERGENCES, Outputs, distillation
from lowbit.distill.matching import hidden_distance, outputs_and_insides, relation_divergence
from lowbit.errors import ConfigError, ModelError
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer

B, T, D, V = 2, 6, 5, 17
RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.standard_normal((B, T, D)), RNG.standard_normal((D, V))
WISE, WISE_HEAD = RNG.standard_normal((B, T, D + 1)), RNG.standard_normal((D + 1, V))
TARGETS = RNG.integers(0, V, (B, T))
# Float32 sums of at most B*T*V = 204 terms of size 1, against float64.
CLOSE = {"rtol": 204 * 2**-23, "atol": 204 * 2**-23}


def f32(x):
    return jnp.asarray(x, jnp.float32)


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def in_float64(hidden, head, weight, temperature, kind):
    """The formula of the docstring, in numpy."""
    logits = hidden @ head
    log_p, log_q = (log_softmax(x / temperature) for x in (logits, WISE @ WISE_HEAD))
    p, q = np.exp(log_p), np.exp(log_q)
    forward, reverse = (q * (log_q - log_p)).sum(-1), (p * (log_p - log_q)).sum(-1)
    b = {"forward": 0.0, "reverse": 1.0, "confidence": np.take_along_axis(q, TARGETS[..., None], -1)[..., 0]}[kind]
    hard = -np.take_along_axis(log_softmax(logits), TARGETS[..., None], -1).mean()
    return (1 - weight) * hard + weight * temperature**2 * (b * reverse + (1 - b) * forward).mean()


def slopes(function, x, step=1e-5):
    """Central differences of a float64 function in every direction: errors of the order of step^2."""
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += step
        below[index] -= step
        result[index] = (function(above) - function(below)) / (2 * step)
    return result


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.6, 2.0)])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_value_and_gradient_of_a_divergence(kind, weight, temperature):
    def chunked(hidden, head):
        teacher = Outputs(f32(WISE), f32(WISE_HEAD))
        return distillation(hidden, head, teacher, jnp.asarray(TARGETS, jnp.int32), weight, temperature, 3, kind)[0]

    value, (d_hidden, d_head) = jax.value_and_grad(chunked, argnums=(0, 1))(f32(HIDDEN), f32(HEAD))
    np.testing.assert_allclose(value, in_float64(HIDDEN, HEAD, weight, temperature, kind), **CLOSE)
    of_hidden = slopes(lambda x: in_float64(x, HEAD, weight, temperature, kind), HIDDEN)
    of_head = slopes(lambda x: in_float64(HIDDEN, x, weight, temperature, kind), HEAD)
    np.testing.assert_allclose(d_hidden, of_hidden, **CLOSE)
    np.testing.assert_allclose(d_head, of_head, **CLOSE)


def test_hidden_states_are_compared_by_direction():
    own, wise = RNG.standard_normal((2, 3, B, T, D))

    def in_numpy(own):
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (own, wise)]
        return np.square(unit[0] - unit[1])[:-1].sum(-1).mean((1, 2)).sum()

    value, gradient = jax.value_and_grad(hidden_distance)(f32(own), f32(wise))
    np.testing.assert_allclose(value, in_numpy(own), **CLOSE)
    np.testing.assert_allclose(gradient, slopes(in_numpy, own), **CLOSE)
    np.testing.assert_allclose(hidden_distance(7 * f32(own), f32(own)), 0, atol=1e-6)


@pytest.mark.parametrize("chunks", [1, 3])
def test_relations_of_positions(chunks):
    own, wise = RNG.standard_normal((B, T, 2, 4)), RNG.standard_normal((B, T, 2, 6))

    def in_numpy(own):
        logs = []
        for x in (own, wise):
            scores = np.einsum("bqhe,bthe->bhqt", x, x) / np.sqrt(x.shape[-1])
            logs.append(log_softmax(np.where(np.tri(T, dtype=bool), scores, -1e30)))
        log_p, log_q = logs
        return (np.exp(log_q) * (log_q - log_p)).sum(-1).mean()

    value, gradient = jax.value_and_grad(relation_divergence)(f32(own), f32(wise), chunks)
    np.testing.assert_allclose(value, in_numpy(own), **CLOSE)
    np.testing.assert_allclose(gradient, slopes(in_numpy, own), **CLOSE)
    np.testing.assert_allclose(relation_divergence(f32(own), f32(own), chunks), 0, atol=1e-6)


CFG = LlamaConfig(32, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, max_positions=16)
TOKENS = jnp.asarray(RNG.integers(0, 32, (2, 9)), jnp.int32)


@pytest.fixture(scope="module")
def params():
    model = Transformer(CFG)
    return [model.init(jax.random.key(seed), TOKENS[:, :-1])["params"] for seed in (0, 1)]


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_objective_is_the_sum_of_its_parts(params, remat):
    own, wise = params
    model = Transformer(CFG, remat=remat)
    mix = Mix(0.5, 2.0, "reverse", hidden_weight=0.3, attention_weight=0.7, attention_layer=0)
    objective = jax.jit(distill(model, model, mix, chunks=2))
    loss, metrics = objective({"params": own, "teacher": wise}, TOKENS)
    expected = 0.5 * metrics["cross_entropy"] + 0.5 * 4 * metrics["divergence"]
    expected += 0.3 * metrics["hidden_distance"] + 0.7 * metrics["attention_divergence"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert min(float(metrics[name]) for name in ("divergence", "hidden_distance", "attention_divergence")) > 0
    (plain, _) = distill(model, model, Mix(0.5, 2.0, "reverse"), chunks=2)({"params": own, "teacher": wise}, TOKENS)
    np.testing.assert_allclose(plain, 0.5 * metrics["cross_entropy"] + 2 * metrics["divergence"], rtol=1e-6)
    _, same = objective({"params": own, "teacher": own}, TOKENS)
    for name in ("divergence", "hidden_distance", "attention_divergence"):
        np.testing.assert_allclose(same[name], 0, atol=1e-5)


def test_insides_are_those_of_the_layers(params):
    model = Transformer(CFG)
    outputs, insides = outputs_and_insides(model, {"params": params[0]}, TOKENS[:, :-1], states=True, layer=-1)
    assert insides.states.shape == (2, 2, 8, 16)
    assert [x.shape for x in insides.projections] == [(2, 8, 4, 4), (2, 8, 2, 4), (2, 8, 2, 4)]
    normed = insides.states[-1] / jnp.sqrt(jnp.mean(jnp.square(insides.states[-1]), -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(outputs.hidden, normed, rtol=1e-4, atol=1e-6)


def test_models_whose_insides_differ_are_refused():
    student = Transformer(CFG)
    for change, mix, cause in (
        ({"hidden_size": 24}, Mix(0.0, hidden_weight=1.0), r"2 layers of 24, and of the student, 2 of 16"),
        ({"num_kv_heads": 4}, Mix(0.0, attention_weight=1.0), r"teacher has \(4, 4\) heads .* the student \(4, 2\)"),
    ):
        teacher = Transformer(LlamaConfig(**{**_fields(), **change}))
        with pytest.raises(ModelError, match=cause):
            distill(teacher, student, mix)
    with pytest.raises(ConfigError, match=r"distill\.attention_layer=2 of 2 layers\n  -> give a number from -2 to 1"):
        distill(student, student, Mix(0.0, attention_weight=1.0, attention_layer=2))
    with pytest.raises(ConfigError, match=r"unknown divergence 'reversed'\n  -> did you mean 'reverse'"):
        Mix(1.0, divergence="reversed")
    with pytest.raises(ConfigError, match=r"weights of -1\.0 and 0\.0 on the insides"):
        Mix(1.0, hidden_weight=-1.0)


def _fields():
    return {name: getattr(CFG, name) for name in CFG.__dataclass_fields__}
