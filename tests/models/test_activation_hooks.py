"""Hooks: what is rounded where, and that a model without them is what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.linen import quantize
from lowbit.llama import LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig, param_shapes
from lowbit.models import Transformer
from lowbit.models.activations import fake_cached, range_variables, rounding_hooks, watched, watching
from lowbit.models.attention import causal_attention, rotary_tables, rotate
from lowbit.models.transformer import Block
from lowbit.numerics.activations import dynamic
from lowbit.numerics.quantizers import llmqat
from lowbit.tree import Rule, fake_quant, unflatten

CFG = LlamaConfig(
    vocab_size=40, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 7)), jnp.int32)
W8 = tuple((path, InputRounding(8)) for path in LINEARS)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return unflatten(
        {path: jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32) for path, shape in param_shapes(CFG).items()}
    )


PARAMS = parameters()
LAYER = jax.tree.map(lambda leaf: leaf[0], PARAMS["layers"])


def rms(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + CFG.rms_norm_eps) * scale[None, None]


def by_hand(x, bits, kind):
    """A block written out: inputs of all products rounded by token, keys and values as the cache has them."""

    def linear(x, name, part="attn"):
        rows = x.reshape(-1, x.shape[-1])
        q = dynamic(bits)
        return (q.fake(rows, q.init(rows)) @ LAYER[part][name]["kernel"]).reshape(*x.shape[:-1], -1)

    cos, sin = rotary_tables(CFG, x.shape[1])
    h = rms(x, LAYER["attn_norm"]["scale"])
    q, k, v = (linear(h, name).reshape(2, 7, -1, 8) for name in ("q_proj", "k_proj", "v_proj"))
    k = fake_cached(kind, rotate(k, cos, sin)) if kind.rotated else rotate(fake_cached(kind, k), cos, sin)
    mixed = causal_attention(rotate(q, cos, sin), k, fake_cached(kind, v), "xla")
    x = x + linear(mixed.reshape(2, 7, -1), "o_proj")
    h = rms(x, LAYER["mlp_norm"]["scale"])
    return x + linear(jax.nn.silu(linear(h, "gate_proj", "mlp")) * linear(h, "up_proj", "mlp"), "down_proj", "mlp")


@pytest.mark.parametrize(
    "kind", [CacheKind(4), CacheKind(4, rotated=False), CacheKind(8, False, per_head=False)], ids=str
)
def test_a_block_rounds_what_it_says(kind):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 24)), jnp.float32)
    hooks = rounding_hooks(ActivationRounding(W8, kind))
    got, _ = Block(CFG, hooks=hooks).apply({"params": LAYER}, x, *rotary_tables(CFG, 7))
    # The same operations one by one: a few roundings of sums of 24 to 40 numbers, none at a tie between two levels.
    np.testing.assert_allclose(got, by_hand(x, 8, kind), rtol=0, atol=1e-5)


def test_gradients_pass_the_rounding_of_keys_and_values_unchanged():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, 2, 8)), jnp.float32)
    for kind in (CacheKind(4), CacheKind(4, symmetric=False, per_head=False)):
        x_hat, vjp = jax.vjp(lambda x, kind=kind: fake_cached(kind, x), x)
        assert np.abs(x_hat - x).max() > 0.01
        np.testing.assert_array_equal(vjp(x)[0], x)


def test_rounding_goes_with_quantized_parameters_in_one_scan():
    """Also of a state that is read inside of the scan: "grid" reaches the layers through the parameters' transform."""
    rules = [Rule(r".*_proj/kernel", llmqat(4)), Rule(".*", None)]
    inputs = tuple((path, InputRounding(8, True, "tensor", "static")) for path in LINEARS)
    ranges = {path: {"scale": np.asarray([[[0.01]], [[0.02]]], np.float32)} for path in LINEARS}
    hooks = rounding_hooks(ActivationRounding(inputs))
    grid = range_variables(ranges)
    inside = Transformer(CFG, remat="full", transform=lambda cls, prefix: quantize(cls, rules, prefix), hooks=hooks)
    got = jax.jit(inside.apply)({"params": PARAMS, "grid": grid}, TOKENS)
    params = fake_quant(rules, PARAMS, {})
    np.testing.assert_array_equal(
        got, jax.jit(Transformer(CFG, hooks=hooks).apply)({"params": params, "grid": grid}, TOKENS)
    )
    other = range_variables({path: {"scale": 2 * own["scale"]} for path, own in ranges.items()})
    assert np.abs(got - jax.jit(inside.apply)({"params": PARAMS, "grid": other}, TOKENS)).max() > 1e-3


def test_watching_notes_the_range_of_each_channel_and_changes_nothing():
    model = Transformer(CFG)
    _, kept = model.clone(hooks=watching(model.hooks)).apply({"params": PARAMS}, TOKENS, mutable=["intermediates"])
    found = watched(kept["intermediates"])
    assert set(found) == set(LINEARS)
    assert found["layers/mlp/down_proj"].low.shape == (2, 1, 40)
    h = rms(PARAMS["embed"]["embedding"][TOKENS], LAYER["attn_norm"]["scale"]).reshape(-1, 24)
    for name in ("q_proj", "v_proj"):
        np.testing.assert_allclose(found[f"layers/attn/{name}"].high[0, 0], jnp.maximum(h.max(0), 0), rtol=1e-6)
        np.testing.assert_allclose(found[f"layers/attn/{name}"].low[0, 0], jnp.minimum(h.min(0), 0), rtol=1e-6)


def test_without_rounding_the_program_is_the_same():
    plain = jax.jit(Transformer(CFG).apply).lower({"params": PARAMS}, TOKENS).as_text()
    empty = Transformer(CFG, hooks=rounding_hooks(ActivationRounding()))
    assert jax.jit(empty.apply).lower({"params": PARAMS}, TOKENS).as_text() == plain
