"""One model, three ways to compute it: the same likelihoods, greedy tokens and logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.evals import jax_predictor, numpy_predictor
from lowbit.evals.scoring import BatchScorer, Request
from lowbit.export import pack_model
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.numerics.quantizers import paretoq, stored_as
from lowbit.tree import Rule, fake_quant, init_state, unflatten

CFG = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
)
RULES = (Rule("layers/.*/kernel", paretoq(2)), Rule(".*", stored_as(jnp.float16)))
# Logits are sums of float32 products a few layers deep, of size about 10: a few hundred steps of 2**-24 relative.
STEPS = {"rtol": 0, "atol": 300 * 10 * 2.0**-24}


@pytest.fixture(scope="module")
def predictors():
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(1.0 if "norm" in path else 0.0, 0.2, s) for path, s in param_shapes(CFG).items()}
    params = unflatten({path: w.astype(np.float32) for path, w in flat.items()})
    state = init_state(RULES, params)
    packed = pack_model(CFG, params, RULES, state, {}, {})
    return {
        "fake-quantized": jax_predictor.predictor(CFG, fake_quant(RULES, params, state), {}),
        "packed, jax": jax_predictor.packed_predictor(CFG, packed),
        "packed, numpy": numpy_predictor.predictor(packed),
    }


def tokens(rows, t):
    return np.random.default_rng(1).integers(0, CFG.vocab_size, (rows, t)).astype(np.int32)


def test_all_ways_give_the_same_scores_and_logits(predictors):
    batch = tokens(4, 13)
    expected = np.asarray(predictors["packed, numpy"].make_logits(4)(batch[:, :-1])).astype(np.float64)
    norm = np.log(np.exp(expected).sum(axis=-1))
    nats = norm - np.take_along_axis(expected, batch[:, 1:, None], axis=-1)[..., 0]
    for name, model in predictors.items():
        np.testing.assert_allclose(model.make_logits(4)(batch[:, :-1]), expected, **STEPS, err_msg=name)
        nll, top = model.make_scores(4)(batch)
        np.testing.assert_allclose(nll, nats, **STEPS, err_msg=name)
        np.testing.assert_allclose(model.make_nll(4, 12, None)(batch), nats, **STEPS, err_msg=name)
        assert np.array_equal(top, expected.argmax(axis=-1)), name


def test_rows_are_spread_over_the_devices_that_divide_them(predictors):
    model = predictors["packed, jax"]
    one, eight = model.make_scores(5)(tokens(5, 9)), model.make_scores(8)(tokens(8, 9))
    assert jax.device_count() == 8
    assert [len(nll.sharding.device_set) for nll, _ in (one, eight)] == [1, 8]
    np.testing.assert_allclose(one[0], np.asarray(eight[0])[:5], **STEPS)


def test_scorers_agree_whatever_the_batch(predictors):
    rng = np.random.default_rng(2)
    requests = [
        Request(tuple(rng.integers(0, 64, rng.integers(1, 50)).tolist()), tuple(rng.integers(0, 64, 3).tolist()))
        for _ in range(9)
    ]
    expected = BatchScorer(predictors["packed, numpy"], 2).log_likelihoods(requests)
    got = BatchScorer(predictors["packed, jax"], 8).log_likelihoods(requests)
    for one, other in zip(got, expected, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=3 * STEPS["atol"])  # three tokens
        assert one.greedy == other.greedy


def test_greedy_text_is_the_runtime_s(predictors):
    expected = BatchScorer(predictors["packed, numpy"], 1).continue_greedily([[1, 2], [3]], 4, lambda _: False)
    assert BatchScorer(predictors["packed, jax"], 2).continue_greedily([[1, 2], [3]], 4, lambda _: False) == expected
