"""Rules: first match wins, total coverage, nothing unused; and what quantizers do to whole trees."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import RuleError
from lowbit.numerics.quantizers import absmean_ternary, llmqat, paretoq, rtn, stored_as, transposed
from lowbit.tree import Rule, assign, bits_report, encode, fake_quant, flatten, init_state, lookup, resolve, unflatten

PATHS = ["embed/embedding", "layers/attn/q_proj/kernel", "layers/attn/o_proj/kernel", "norm/scale"]
RNG = np.random.default_rng(0)


def params():
    def normal(*shape):
        return jnp.asarray(RNG.standard_normal(shape).astype(np.float32))

    return {
        "embed": {"embedding": normal(10, 8)},
        "layers": {"attn": {"q_proj": {"kernel": normal(2, 8, 6)}, "o_proj": {"kernel": normal(2, 6, 8)}}},
        "norm": {"scale": normal(8)},
    }


def test_first_match_wins():
    rules = (Rule("layers/.*/q_proj/kernel", "q"), Rule("layers/.*", "layer"), Rule(".*", "rest"))
    assert assign(rules, PATHS) == dict(zip(PATHS, ["rest", "q", "layer", "rest"], strict=True))
    assert lookup(rules, "layers/attn/q_proj/kernel") == "q"


def test_patterns_match_whole_paths():
    with pytest.raises(RuleError, match=r"rule 'kernel' matches nothing; the paths are embed/embedding, layers"):
        assign((Rule("kernel", 1), Rule(".*", 0)), PATHS)


def test_an_uncovered_parameter_is_named():
    with pytest.raises(RuleError, match=r"no rule covers embed/embedding, norm/scale.*\n  -> .*Rule\('\.\*', None\)"):
        assign((Rule("layers/.*", 1),), PATHS)
    with pytest.raises(RuleError, match="no rule covers norm/scale"):
        lookup((Rule("layers/.*", 1),), "norm/scale")


def test_a_shadowed_rule_is_named_with_what_it_would_take():
    rules = (Rule(".*", 0), Rule("layers/.*", 1))
    with pytest.raises(RuleError, match=r"rule 'layers/\.\*' is never reached: .*layers/attn/q_proj/kernel"):
        assign(rules, PATHS)


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(RuleError, match=r"rule 'layers/\(' is no regular expression"):
        assign((Rule("layers/(", 1),), PATHS)


def test_a_group_that_does_not_divide_prints_the_paths():
    rules = (Rule("layers/.*", paretoq(2, granularity=4)), Rule(".*", None))
    with pytest.raises(RuleError, match=r"layers/attn/o_proj/kernel \(paretoq2\): a group of 4 does not divide the 6"):
        resolve(rules, jax.eval_shape(params))


def test_flatten_and_unflatten_are_inverse():
    tree = params()
    assert jax.tree.structure(unflatten(flatten(tree))) == jax.tree.structure(tree)
    assert list(flatten(tree)) == PATHS


def test_state_mirrors_the_paths_and_leaves_out_what_is_dynamic_or_float():
    rules = (
        Rule("layers/attn/q_proj/kernel", paretoq([1, 4])),
        Rule("layers/attn/o_proj/kernel", llmqat(4)),
        Rule(".*", stored_as(jnp.float16)),
    )
    state = init_state(rules, params())
    assert set(flatten(state["quant"])) == {"layers/attn/q_proj/kernel/scale"}
    assert set(flatten(state["grid"])) == {"layers/attn/q_proj/kernel"}
    assert flatten(state["quant"])["layers/attn/q_proj/kernel/scale"].shape == (2, 1, 6)


def test_encoded_tree_decodes_to_the_fake_quantized_tree():
    rules = (
        Rule("layers/attn/q_proj/kernel", paretoq(2)),
        Rule("layers/attn/o_proj/kernel", absmean_ternary()),
        Rule("embed/embedding", transposed(rtn(8, granularity=4))),
        Rule(".*", stored_as(jnp.bfloat16)),
    )
    tree = params()
    state = init_state(rules, tree)
    shipped = encode(rules, tree, state)
    for path, w_hat in flatten(fake_quant(rules, tree, state)).items():
        kept = shipped[path]
        decoded = kept.astype(jnp.float32) if isinstance(kept, jax.Array) else kept.decode()
        np.testing.assert_array_equal(w_hat, decoded, err_msg=path)


def test_none_leaves_a_parameter_alone():
    tree = params()
    rules = (Rule(".*", None),)
    assert fake_quant(rules, tree, init_state(rules, tree))["norm"]["scale"] is tree["norm"]["scale"]


def test_bits_report_counts_codes_scales_and_floats():
    rules = (Rule("layers/.*/q_proj/kernel", paretoq(1.58)), Rule("layers/.*", None), Rule(".*", stored_as("float16")))
    report = bits_report(rules, jax.eval_shape(params))
    weights = 2 * 8 * 6
    bits = 2 * 6 * (2 * 8 + 16)  # for each output of each layer: eight trits in two bytes, and a scale
    assert report.quantized_bits_per_weight == pytest.approx(bits / weights)
    everything = bits + weights * 32 + (80 + 8) * 16
    assert report.model_bits_per_weight == pytest.approx(everything / (2 * weights + 88))
    assert re.search(r"layers/attn/q_proj/kernel +paretoq1.58 +96 weights +4.000 bits/weight", str(report))


def test_bits_report_of_mixed_widths_is_their_mean():
    rules = (Rule("layers/.*/q_proj/kernel", paretoq([1, 4])), Rule(".*", None))
    report = bits_report(rules, jax.eval_shape(params))
    assert report.quantized_bits_per_weight == pytest.approx((1 + 4) / 2 + 16 / 8)
