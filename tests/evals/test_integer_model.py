"""A whole model whose linear layers multiply integers: near the rounded floats, and without a float in them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.evals import jax_predictor
from lowbit.evals.integer_model import integer_kernels, integer_product
from lowbit.formats import PackedModel, decode
from lowbit.llama import LINEARS, LlamaConfig, param_shapes
from lowbit.llama.activations import CacheKind
from lowbit.models.activations import input_quantizer
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.packed import packed_name
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Activations, Calibration, Options, Plan, make_target, pack_layers, quantize_layers
from lowbit.tree import unflatten

CFG = LlamaConfig(40, 32, 48, 2, num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True, max_positions=32)
TOKENS = np.random.default_rng(7).integers(0, 40, (16, 24)).astype(np.int32)
INTEGERS = {"int8", "uint8", "int16", "int32", "uint32", "bool"}


def packed_model(activations, grid="integer", bits=8, granularity="channel"):
    rng = np.random.default_rng(2)
    flat = {
        path: rng.standard_normal(shape).astype(np.float32) * (0.2 if "kernel" in path else 1.0)
        for path, shape in param_shapes(CFG).items()
    }
    source = ModelInMemory(Pretrained(CFG, unflatten(flat), {}))
    target = make_target(grid, bits, granularity, "max")
    calibration = Calibration(TOKENS, 0, "noise")
    plan = Plan(METHODS["rtn"], target, Options(), calibration, activations)
    layers = quantize_layers(source, plan, devices=jax.devices()[:1])
    return pack_layers(source, layers, target, {}, activations)[0]


CASES = {
    "static": (Activations("int8-static"), "integer", 8),
    "mixed, cache, zero points": (Activations("int8-mixed", cache=CacheKind(8)), "zero_point", 4),
    "by token, half-integers": (Activations("int8-dynamic"), "paretoq", 2),
}


# What the last adds, half-integers by token, is in the kernels that "mixed" takes by token.
@pytest.fixture(
    scope="module",
    params=["static", "mixed, cache, zero points", pytest.param("by token, half-integers", marks=pytest.mark.slow)],
)
def packed(request):
    return packed_model(*CASES[request.param])


def test_each_product_is_that_of_rounded_floats_to_half_a_step(packed):
    stacks = integer_kernels(CFG, packed)["layers"]
    rng = np.random.default_rng(0)
    for path in LINEARS:
        _, part, name = path.split("/")
        for index in range(CFG.num_layers):
            kernel = jax.tree.map(lambda leaf: leaf[index], stacks[part][name]["kernel"])  # noqa: B023
            w = decode(packed.tensors[packed_name(f"{path}/kernel", index)]).astype(np.float64)
            x = jnp.asarray(rng.standard_normal((9, w.shape[0])).astype(np.float32)).at[0].set(-100.0).at[1].set(0.0)
            quantizer = input_quantizer(kernel.rounding)
            state = quantizer.state_of(x, {} if kernel.range is None else {"scale": kernel.range})
            x_hat = np.asarray(quantizer.fake(x, state), np.float64)
            largest = np.abs(x_hat).max(axis=1, keepdims=True)
            scale = largest / 127 if kernel.range is None else np.asarray(kernel.range)
            step = scale * np.asarray(kernel.steps)[None]
            # Half a step, its multiplier's last bit, and what is left of float32: three products and decoded weights.
            bound = step / 2 * (1 + 2.0**-15) + 6 * 2.0**-24 * np.abs(x_hat) @ np.abs(w)
            assert (np.abs(np.asarray(integer_product(x, kernel, None)) - x_hat @ w) <= bound).all(), path


def test_the_model_predicts_what_rounded_floats_do(packed):
    batch = TOKENS[:4]
    by_floats, by_integers = (
        np.asarray(make(CFG, packed).make_logits(4)(batch))
        for make in (jax_predictor.packed_predictor, jax_predictor.integer_predictor)
    )
    without = dataclasses.replace(packed, meta={})
    unrounded = np.asarray(jax_predictor.packed_predictor(CFG, without).make_logits(4)(batch))
    # Sixteen bits of outputs move some inputs to the next of their 255 levels: less than rounding them has done.
    assert 0 < np.abs(by_integers - by_floats).mean() < np.abs(by_floats - unrounded).mean()


def test_no_linear_layer_of_the_model_has_a_float_operation():
    packed = packed_model(Activations("int8-static"))
    model = jax_predictor.integer_predictor(CFG, packed)
    jaxpr = jax.make_jaxpr(model.make_logits(1))(TOKENS[:1]).jaxpr
    (scan,) = [equation for equation in equations(jaxpr) if equation.primitive.name == "scan"]
    (layer,) = inner(scan)
    programs = list(programs_named("integer_linear", layer))
    assert len(programs) == len(LINEARS)
    for program in programs:
        found = dtypes_in(program)
        assert found <= INTEGERS, found
        assert {"int8", "int16", "int32"} <= found
    # Nothing else multiplies a kernel: the two products of attention are all that is left of products of floats.
    products = [str(each.outvars[0].aval.dtype) for each in equations(layer) if each.primitive.name == "dot_general"]
    assert sorted(products) == ["float32"] * 2 + ["int32"] * len(LINEARS)


def inner(equation):
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for each in inner(equation):
            yield from equations(each)


def programs_named(name, jaxpr):
    for equation in equations(jaxpr):
        if equation.params.get("name") == name:
            yield from inner(equation)


def dtypes_in(jaxpr):
    variables = [*jaxpr.invars, *jaxpr.constvars]
    for equation in equations(jaxpr):
        variables += [*equation.invars, *equation.outvars]
    return {str(variable.aval.dtype) for variable in variables}


def test_what_integers_cannot_multiply_is_refused():
    packed = packed_model(Activations("int8-dynamic"))
    floats = PackedModel(packed.tensors, packed.config, packed.tokenizer, {})
    with pytest.raises(QuantizerError, match=r"the inputs of layers/attn/q_proj are floats.*\n.*--activations int8"):
        jax_predictor.integer_predictor(CFG, floats)
    record = packed.meta["activations"]
    minmax = {**record["inputs"], LINEARS[1]: {**record["inputs"][LINEARS[1]], "symmetric": False}}
    asymmetric = dataclasses.replace(packed, meta={"activations": {**record, "inputs": minmax}})
    with pytest.raises(QuantizerError, match=r"the inputs of layers/attn/k_proj are not rounded to levels around 0"):
        jax_predictor.integer_predictor(CFG, asymmetric)
    grouped = packed_model(Activations("int8-dynamic"), granularity=16)
    with pytest.raises(
        QuantizerError, match=r"^layers\.0\.attn\.q_proj\.kernel: a kernel with scales of shape \[2, 32\]"
    ):
        jax_predictor.integer_predictor(CFG, grouped)
    name = packed_name(f"{LINEARS[0]}/kernel", 0)
    stored = dataclasses.replace(packed, tensors={**packed.tensors, name: np.zeros((32, 32), np.float16)})
    with pytest.raises(QuantizerError, match=r"q_proj\.kernel is stored as floats"):
        jax_predictor.integer_predictor(CFG, stored)
