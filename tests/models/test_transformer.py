"""The decoder as a program: its tree, what each position may see, and what a transform meets."""

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive, primitives

from lowbit.errors import ModelError
from lowbit.linen import quantize
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import Block, Transformer
from lowbit.models.attention import resolve_attention, rotary_tables, rotate
from lowbit.models.transformer import matmuls_and_fused_attention
from lowbit.numerics.quantizers import paretoq, rtn, stored_as, transposed
from lowbit.tree import Rule, fake_quant, init_state

CFG = LlamaConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=32,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CFG.vocab_size, (2, 7)), jnp.int32)


def with_(**changes):
    return LlamaConfig(**{**CFG.__dict__, **changes})


def random_params(cfg, seed=0):
    """Parameters as numpy draws them: a compiled init is slow to build."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(cfg).items()
    flat = {path: jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32) for path, shape in shapes}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


PARAMS = random_params(CFG)


def run(model, variables, *args, method="__call__"):
    return jax.jit(lambda v, *a: model.apply(v, *a, method=method))(variables, *args)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_init_makes_the_tree_that_the_config_states(tied, bias):
    cfg = with_(tie_embeddings=tied, qkv_bias=bias)
    tree = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), TOKENS)
    flat = flax.traverse_util.flatten_dict(tree["params"], sep="/")
    assert {path: leaf.shape for path, leaf in flat.items()} == param_shapes(cfg)
    assert {leaf.dtype.name for leaf in flat.values()} == {"float32"}
    assert set(tree) == {"params"}


def test_logits_do_not_see_later_tokens():
    """A zero gradient from position i's logits to the embedding of every later token is causality itself."""
    tokens = jnp.arange(7, dtype=jnp.int32)[None]  # each token once: a row of the table is a position
    model = Transformer(with_(tie_embeddings=False))
    params = random_params(model.cfg)

    def position(table, i):
        logits = model.apply({"params": {**params, "embed": {"embedding": table}}}, tokens)
        return jnp.sum(jnp.square(logits[0, i]))

    gradient = jax.jit(jax.vmap(jax.grad(position), in_axes=(None, 0)))
    seen = np.abs(gradient(params["embed"]["embedding"], jnp.arange(7))[:, :7]).sum(-1) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((7, 7), bool)))


def wave(logits):
    """Some smooth loss of order 1."""
    return jnp.mean(jnp.sin(logits))


def unrolled(params, cfg, tokens):
    """The forward pass with a plain loop over layers."""
    table = params["embed"]["embedding"]
    x = table[tokens]
    cos, sin = rotary_tables(cfg, tokens.shape[1])
    for layer in range(cfg.num_layers):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        x, _ = Block(cfg).apply({"params": own}, x, cos, sin)
    norm = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + cfg.rms_norm_eps)
    return (norm * params["norm"]["scale"][None, None]) @ table.T


@pytest.fixture(scope="module")
def looped():
    return jax.jit(jax.value_and_grad(lambda p: wave(unrolled(p, CFG, TOKENS))))(PARAMS)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scan_equals_a_loop_over_layers_in_values_and_gradients(remat, looped):
    model = Transformer(CFG, remat=remat)
    scanned = jax.jit(jax.value_and_grad(lambda p: wave(model.apply({"params": p}, TOKENS))))
    (value, gradient), (want, want_gradient) = scanned(PARAMS), looped
    # The same float32 sums in another order: a few units in the last place of values of order 1.
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, want_gradient)


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_times_head_is_the_logits(tied):
    model = Transformer(with_(tie_embeddings=tied), dtype=jnp.bfloat16)
    variables = {"params": random_params(model.cfg)}
    hidden = run(model, variables, TOKENS, method="hidden")
    head = run(model, variables, method="head")
    assert (hidden.dtype, head.dtype, head.shape) == (jnp.bfloat16, jnp.bfloat16, (24, 40))
    both = run(model, variables, TOKENS, method="hidden_and_head")
    np.testing.assert_array_equal(both[0], hidden)
    np.testing.assert_array_equal(both[1], head)
    logits = run(model, variables, TOKENS)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, jnp.matmul(hidden, head, preferred_element_type=jnp.float32))


def test_bfloat16_stays_near_float32():
    narrow = run(Transformer(CFG, dtype=jnp.bfloat16), {"params": PARAMS}, TOKENS)
    wide = run(Transformer(CFG), {"params": PARAMS}, TOKENS)
    # bfloat16 keeps 8 bits: each of the few dozen roundings on the way moves a logit by at most 2^-9 of its size.
    assert 0 < np.abs(narrow - wide).max() < 32 * 2.0**-9 * np.abs(wide).max()


def test_rotation_depends_on_the_distance_alone():
    cos, sin = rotary_tables(CFG, 12)
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at, to):
        turned = rotate(q, cos[at : at + 1], sin[at : at + 1]) * rotate(k, cos[to : to + 1], sin[to : to + 1])
        return float(turned.sum())

    assert score(3, 1) == pytest.approx(score(10, 8), abs=1e-5)
    assert abs(score(3, 1) - score(4, 1)) > 1e-3


def scaling(seen):
    """A toy transform: multiplies each kernel by a scale in `quant` of the same path, and notes what it met."""

    def transform(module_cls, prefix):
        def scale(variables):
            params, quant = variables["params"], variables.get("quant", {})
            params = flax.traverse_util.flatten_dict(params)
            for path, value in flax.traverse_util.flatten_dict(quant).items():
                seen.append(("/".join((prefix, *path)), value.shape))
                params[path] = params[path] * value
            return {**variables, "params": flax.traverse_util.unflatten_dict(params)}

        return nn.map_variables(module_cls, ["params", "quant"], scale)

    return transform


@pytest.mark.parametrize(("remat", "tied"), [("full", False), ("dots", True)])
def test_a_transform_meets_one_layer_at_a_time_under_scan_and_remat(remat, tied):
    cfg = with_(tie_embeddings=tied)
    params = random_params(cfg)
    shapes = {
        "embed/embedding": (40, 1),
        "layers/attn/q_proj/kernel": (3, 1, 32),
        "layers/mlp/down_proj/kernel": (3, 1, 24),
        "layers/mlp_norm/scale": (3, 1),
        "norm/scale": (1,),
    }
    if not tied:
        shapes["lm_head/kernel"] = (1, 40)
    rng = np.random.default_rng(3)
    flat = {path: jnp.asarray(rng.uniform(0.5, 2, shape), jnp.float32) for path, shape in shapes.items()}
    quant = flax.traverse_util.unflatten_dict(flat, sep="/")
    seen = []
    toy = Transformer(cfg, remat=remat, transform=scaling(seen))

    def transformed(params, quant):
        return toy.apply({"params": params, "quant": quant}, TOKENS)

    def oracle(params, quant):
        paths = flax.traverse_util.flatten_dict(params, sep="/")
        for path, value in flax.traverse_util.flatten_dict(quant, sep="/").items():
            paths[path] = paths[path] * value
        return Transformer(cfg).apply({"params": flax.traverse_util.unflatten_dict(paths, sep="/")}, TOKENS)

    def with_gradient(apply):
        loss = jax.value_and_grad(lambda p, q: wave(apply(p, q)), argnums=(0, 1))
        return jax.jit(loss)(params, quant)

    (value, gradients), (want, want_gradients) = with_gradient(transformed), with_gradient(oracle)
    assert dict(seen) == {path: s[1:] if path.startswith("layers/") else s for path, s in shapes.items()}
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, want_gradients)


def test_fake_quantization_enters_by_the_transform_and_equals_the_tree_form_bit_for_bit():
    rules = (
        Rule("layers/.*_proj/kernel", paretoq(2)),
        Rule("embed/embedding", transposed(rtn(4))),
        Rule(".*", stored_as(jnp.float16)),
    )
    state = init_state(rules, PARAMS)
    model = Transformer(CFG, remat="dots", transform=lambda cls, prefix: quantize(cls, rules, prefix))
    fused = run(model, {"params": PARAMS, **state}, TOKENS)

    # In one program, as XLA may order a matmul's sums by whether its weights are computed or given.
    @jax.jit
    def tree_form(params, state):
        return Transformer(CFG).apply({"params": fake_quant(rules, params, state)}, TOKENS)

    np.testing.assert_array_equal(fused, tree_form(PARAMS, state))
    assert np.abs(fused - run(Transformer(CFG), {"params": PARAMS}, TOKENS)).max() > 0.1


def test_a_tied_embedding_is_transformed_once():
    seen = []
    variables = {"params": PARAMS, "quant": {"embed": {"embedding": jnp.ones((40, 1))}}}
    jax.eval_shape(Transformer(CFG, transform=scaling(seen)).apply, variables, TOKENS)
    assert seen == [("embed/embedding", (40, 1))]


def test_every_kernel_of_a_block_goes_through_dot_general():
    shapes = []

    def counted(x, kernel, dimension_numbers):
        shapes.append(kernel.shape)
        return jax.lax.dot_general(x, kernel, dimension_numbers)

    jax.eval_shape(Transformer(CFG, dot_general=counted).apply, {"params": PARAMS}, TOKENS)
    assert shapes[:7] == [(24, 32), (24, 16), (24, 16), (32, 24), (24, 40), (24, 40), (40, 24)]


def test_unknown_choices_are_refused():
    with pytest.raises(ModelError, match="remat 'dot' is unknown: did you mean 'dots'"):
        Transformer(CFG, remat="dot").apply({"params": PARAMS}, TOKENS)
    with pytest.raises(ModelError, match="attention 'flash' is unknown: choose from auto, cudnn, xla"):
        Transformer(CFG, attention="flash").apply({"params": PARAMS}, TOKENS)
    with pytest.raises(ModelError, match="cuDNN attention cannot run on cpu with float32 and heads of 8"):
        Transformer(CFG, attention="cudnn").apply({"params": PARAMS}, TOKENS)


def test_auto_attention_asks_the_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_attention("auto", jnp.bfloat16, 64) == "cudnn"
    assert resolve_attention("auto", jnp.float32, 64) == "xla"
    assert resolve_attention("auto", jnp.bfloat16, 256) == "xla"
    assert resolve_attention("xla", jnp.bfloat16, 64) == "xla"


def test_the_backward_pass_keeps_what_fused_attention_computed():
    # cuDNN itself runs on a GPU alone; this is the name under which its forward pass stands in a traced program.
    fused = Primitive("dot_product_attention_fwd_wrapper")
    assert matmuls_and_fused_attention(fused) is True
    assert not matmuls_and_fused_attention(Primitive("dot_product_attention_bwd_wrapper"))
    assert not matmuls_and_fused_attention(primitives.exp_p)
