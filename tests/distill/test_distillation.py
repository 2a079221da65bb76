"""The chunked loss equals the plain formula, value and gradient, and the objective trains in the one loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowbit.distill import distill_from, distillation
from lowbit.distill.losses import Outputs
from lowbit.errors import ConfigError
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer
from lowbit.train.losses import cross_entropy
from lowbit.train.state import TrainState
from lowbit.train.step import make_train_step

B, T, D, V = 2, 8, 6, 20
KEYS = jax.random.split(jax.random.key(0), 5)
HIDDEN, HEAD = jax.random.normal(KEYS[0], (B, T, D)), jax.random.normal(KEYS[1], (D, V))
TEACHER = Outputs(jax.random.normal(KEYS[2], (B, T, D + 2)), jax.random.normal(KEYS[3], (D + 2, V)))
TARGETS = jax.random.randint(KEYS[4], (B, T), 0, V)
# Sums of at most B*T*V = 320 float32 terms, in two orders.
CLOSE = {"rtol": 320 * 2**-23, "atol": 320 * 2**-24}


def plain(hidden, head, weight, temperature):
    """The formula of the docstring, logits and all."""
    logits, taught = hidden @ head, TEACHER.hidden @ TEACHER.head
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(logits, TARGETS).mean()
    goal = jax.nn.log_softmax(taught / temperature)
    soft = jax.nn.log_softmax(logits / temperature)
    divergence = jnp.sum(jnp.exp(goal) * (goal - soft), -1).mean()
    return (1 - weight) * hard + weight * temperature**2 * divergence


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.7, 2.0)])
def test_equals_the_plain_formula(weight, temperature, chunks):
    def chunked(hidden, head):
        return distillation(hidden, head, TEACHER, TARGETS, weight, temperature, chunks)[0]

    value, grads = jax.value_and_grad(chunked, argnums=(0, 1))(HIDDEN, HEAD)
    expected, expected_grads = jax.value_and_grad(lambda h, w: plain(h, w, weight, temperature), argnums=(0, 1))(
        HIDDEN, HEAD
    )
    np.testing.assert_allclose(value, expected, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), grads, expected_grads)


def test_without_a_share_of_the_teacher_it_is_cross_entropy():
    loss, hard, _ = distillation(HIDDEN, HEAD, TEACHER, TARGETS, 0.0, 1.0, 2)
    np.testing.assert_allclose(loss, cross_entropy(HIDDEN, HEAD, TARGETS, 2), **CLOSE)
    np.testing.assert_allclose(hard, loss, rtol=0)


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient():
    own = Outputs(HIDDEN, HEAD)

    def loss(hidden):
        return distillation(hidden, HEAD, own, TARGETS, 1.0, 1.0, 2)[0]

    value, grad = jax.value_and_grad(loss)(HIDDEN)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_the_objective_trains_in_the_one_loop_and_leaves_the_teacher_alone():
    cfg = LlamaConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
        }
    )
    model = Transformer(cfg)
    tokens = jax.random.randint(jax.random.key(1), (4, 9), 0, 32)
    params, wise = (model.init(jax.random.key(i), tokens[:, :-1])["params"] for i in (2, 3))
    wise = jax.tree.map(lambda w: 8 * w, wise)  # a teacher with opinions: fresh weights give flat logits
    optimizer = optax.sgd(1.0)
    state = TrainState(
        jnp.int32(0),
        {"params": params, "quant": {}},
        {"grid": {}, "teacher": wise},
        optimizer.init({"params": params, "quant": {}}),
    )
    step = jax.jit(make_train_step(distill_from(model, model, 1.0, chunks=2), optimizer))
    losses = []
    for _ in range(20):
        state, metrics = step(state, tokens)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, state.constants["teacher"], wise)


@pytest.mark.parametrize(
    ("weight", "temperature", "cause"), [(1.5, 1.0, "weight of 1.5"), (0.5, 0.0, "temperature of 0")]
)
def test_bad_settings(weight, temperature, cause):
    model = Transformer(
        LlamaConfig.from_hf(
            {
                "model_type": "llama",
                "vocab_size": 8,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            }
        )
    )
    with pytest.raises(ConfigError, match=cause):
        distill_from(model, model, weight, temperature)
