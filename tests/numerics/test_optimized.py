"""The laws that an optimizing compiler could break, compiled as users do: fusion, rewritten divisions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.numerics.quantizers import absmean_ternary, doubled, fixed, llmqat, nf4, paretoq, rtn
from lowbit.tree import Rule, encode, fake_quant, init_state

QUANTIZERS = [
    *(paretoq(bits) for bits in (1, 1.58, 2, 3, 4)),
    paretoq(2, granularity=8),
    rtn(4),
    rtn(3, symmetric=False),
    rtn(8, granularity="tensor"),
    llmqat(4),
    absmean_ternary(),
    doubled(nf4(8)),
    doubled(paretoq(2, granularity=8)),
    doubled(llmqat(4, granularity=8)),
    fixed(doubled(rtn(3, granularity=8, symmetric=False))),
]
SHAPES = {"a": (3, 64, 48), "b": (40, 56)}


def test_a_compiled_tree_is_what_is_shipped_bit_for_bit(optimized):
    """All quantizers in one program, as a training step holds them: their arithmetic is fused with what is around."""
    rng = np.random.default_rng(0)
    params = {
        f"{name}{i}": jnp.asarray(rng.standard_t(4, size=shape).astype(np.float32) * 0.05)
        for i in range(len(QUANTIZERS))
        for name, shape in SHAPES.items()
    }
    jit = functools.partial(jax.jit, compiler_options=optimized)
    rules = [Rule(f"[ab]{i}", quantizer) for i, quantizer in enumerate(QUANTIZERS)]
    state = jit(lambda p: init_state(rules, p))(params)

    @jit
    def step(params, state):
        def loss(params):
            return sum(jnp.sum(jnp.sin(w)) for w in fake_quant(rules, params, state).values())

        moved = jax.tree.map(lambda w, g: w - 0.01 * g, params, jax.grad(loss)(params))
        return moved, fake_quant(rules, moved, state)

    moved, quantized = step(params, state)
    shipped = jit(lambda p, s: {k: q.decode() for k, q in encode(rules, p, s).items()})(moved, state)
    for name, w in quantized.items():
        np.testing.assert_array_equal(
            np.asarray(w).view(np.uint32), np.asarray(shipped[name]).view(np.uint32), err_msg=name
        )
