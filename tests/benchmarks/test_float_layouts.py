"""The benchmark of float layouts runs, and computes the same in each."""

import json

import jax.numpy as jnp
import numpy as np

from benchmarks import float_layouts
from benchmarks.float_layouts import LAYOUTS, main, random_weights, step
from lowbit.bench.random_model import SHAPES
from lowbit.llama import LlamaConfig


def laid_out_anew(weights, first, joined, stacked):
    """The matrices of stacks, inputs first and apart, in another layout."""
    groups = (
        {"qkv": "qkv", "gate_up": ("gate", "up")}
        if joined
        else {name: (name,) for name in ("q", "k", "v", "gate", "up")}
    )
    found = {}
    for name, parts in (groups | {"o": ("o",), "down": ("down",)}).items():
        stack = jnp.concatenate([weights[part] for part in parts], axis=2)
        stack = stack if first == "inputs" else jnp.swapaxes(stack, 1, 2)
        found[name] = stack if stacked else list(stack)
    return found


def test_every_layout_is_the_same_decoder():
    cfg = LlamaConfig.from_hf(SHAPES["tiny"])
    x = jnp.ones((2, cfg.hidden_size), jnp.bfloat16)
    weights = random_weights(cfg, "inputs", joined=False, stacked=True)
    expected = step(cfg, "inputs", x, weights)
    for first, joined, stacked in LAYOUTS[1::3]:  # each choice both ways
        found = step(cfg, first, x, laid_out_anew(weights, first, joined, stacked))
        # Sums of bfloat16 products in another order, rounded to 8 bits behind each of 14 products.
        np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=14 * 2**-8)


def test_a_line_a_layout_and_batch(tmp_path, monkeypatch):
    chosen = LAYOUTS[1::5]
    monkeypatch.setattr(float_layouts, "LAYOUTS", chosen)
    output = tmp_path / "layouts.json"
    main(["--shapes", "tiny", "--batches", "1", "--repeats", "1", "-o", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert {(row["first"], row["joined"], row["stacked"]) for row in rows} == set(chosen)
    # Two layers of q, k, v and o (64 x 64 and 64 x 32) and three of 64 x 96.
    assert {row["weight_bytes"] for row in rows} == {2 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)}
    assert all(row["us"] > 0 for row in rows)
