"""quantize(Module) equals the tree-level form bit for bit, under scan and remat, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import RuleError
from lowbit.linen import quantize
from lowbit.numerics.quantizers import absmean_ternary, llmqat, paretoq, rtn, stored_as
from lowbit.tree import Rule, fake_quant, init_state

LAYERS = 3
QUANTIZERS = [
    paretoq(1),
    paretoq(2),
    paretoq(3, granularity=8),
    paretoq([2, 4, 1.58]),
    rtn(4, symmetric=False),
    llmqat(4),
    absmean_ternary(),
]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(32, name="up")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(16, name="down")(h), None


class Net(nn.Module):
    rules: tuple = ()
    remat: bool = True

    @nn.compact
    def __call__(self, x):
        block = quantize(Block, self.rules, "layers") if self.rules else Block
        block = nn.remat(block) if self.remat else block
        stacked = {"params": 0, "quant": 0, "grid": 0}
        layers = nn.scan(block, variable_axes=stacked, split_rngs={"params": True}, length=LAYERS)
        return layers(name="layers")(x)[0]


X = jax.random.normal(jax.random.key(0), (4, 16))
PARAMS = Net().init(jax.random.key(1), X)["params"]


def rules_for(quantizer):
    return (Rule("layers/.*/kernel", quantizer), Rule(".*", stored_as(jnp.float16)))


@pytest.mark.parametrize(
    ("quantizer", "remat"),
    [
        # Whatever a quantizer computes is computed twice with remat; without it, one with widths of its layers is left.
        pytest.param(
            quantizer,
            remat,
            id=f"{quantizer.name}_{quantizer.granularity}-{'remat' if remat else 'plain'}",
            marks=[] if remat or quantizer.at_layer is not None else [pytest.mark.slow],
        )
        for quantizer in QUANTIZERS
        for remat in (True, False)
    ],
)
def test_module_form_equals_tree_form(quantizer, remat, fused):
    rules = rules_for(quantizer)
    state = init_state(rules, PARAMS)

    def module_form(params, state):
        return Net(rules, remat).apply({"params": params, **state}, X)

    def tree_form(params, state):
        return Net(remat=remat).apply({"params": fake_quant(rules, params, state)}, X)

    def both_ways(form):
        def outputs_and_gradients(params, state):
            outputs, backward = jax.vjp(form, params, state)
            return outputs, backward(jnp.cos(outputs))  # of the sum of their sines

        return jax.jit(outputs_and_gradients, compiler_options=fused)(PARAMS, state)

    found, wanted = both_ways(module_form), both_ways(tree_form)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    kernel = found[1][0]["layers"]["up"]["kernel"]
    assert float(jnp.max(jnp.abs(kernel))) > 0


def test_masters_are_not_touched():
    rules = rules_for(paretoq(1))
    variables = {"params": PARAMS, **init_state(rules, PARAMS)}
    _, after = Net(rules).apply(variables, X, mutable=["intermediates"])
    assert "params" not in after


def test_no_recompilation_when_the_widths_of_the_layers_change():
    traces = []

    @jax.jit
    def forward(params, state):
        traces.append(1)
        return Net(rules_for(paretoq([2, 2, 2]))).apply({"params": params, **state}, X)

    outputs = [
        forward(PARAMS, init_state(rules_for(paretoq(widths)), PARAMS))
        for widths in ([1, 2, 3], [4, 4, 4], [1.58, 1, 2])
    ]
    assert len(traces) == 1
    assert not np.array_equal(outputs[0], outputs[1])


def test_an_uncovered_parameter_is_an_error_at_trace_time():
    rules = (Rule("layers/.*/kernel", paretoq(2)),)
    state = {"quant": init_state((*rules, Rule(".*", None)), PARAMS)["quant"]}
    with pytest.raises(RuleError, match="no rule covers layers/"):
        Net(rules).apply({"params": PARAMS, **state}, X)
