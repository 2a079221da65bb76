"""How bfloat16 weights should lie for one token more: layers in a stack or in arrays, inputs or outputs first.

The products of all layers of a decoder with its norms and gates, without attention, embedding and head, in one program:
queries, keys and values apart or joined, and gate and up likewise. What a program takes beside its arguments says
whether it copies weights.

Command: python -m benchmarks.float_layouts -o docs/results/float_layouts_h100.json
Hardware: one GPU. On a CPU the shape tiny runs in seconds.
Time: 90 seconds on an H100.
Expected: docs/generation.md.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.bench.random_model import SHAPES
from lowbit.llama import LlamaConfig

TURNS = 32
"""Steps of a program: starting it takes longer than one."""
LAYOUTS = [
    (first, joined, stacked) for stacked in (True, False) for first in ("inputs", "outputs") for joined in (False, True)
]
INPUTS = {"inputs": (((1,), (0,)), ((), ())), "outputs": (((1,), (1,)), ((), ()))}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-1b", "smollm2-135m"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], help="sequences")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing; the least counts")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write")
    return parser.parse_args(argv)


def random_weights(cfg: LlamaConfig, first: str, joined: bool, stacked: bool) -> dict[str, Any]:
    """Returns the kernels of all layers by name, in the layout."""
    d, heads, kv = cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    ff = cfg.intermediate_size
    if joined:
        shapes = {"qkv": (d, heads + 2 * kv), "gate_up": (d, 2 * ff)}
    else:
        shapes = {"q": (d, heads), "k": (d, kv), "v": (d, kv), "gate": (d, ff), "up": (d, ff)}
    shapes |= {"o": (heads, d), "down": (ff, d)}
    weights: dict[str, Any] = {}
    for number, (name, (k, n)) in enumerate(shapes.items()):
        shape = (cfg.num_layers, *((k, n) if first == "inputs" else (n, k)))
        stack = 0.02 * jax.random.normal(jax.random.key(number), shape, jnp.bfloat16)
        weights[name] = stack if stacked else [stack[layer] for layer in range(cfg.num_layers)]
    return weights


def step(cfg: LlamaConfig, first: str, x: jax.Array, weights: dict[str, Any]) -> jax.Array:
    """Returns [b d] behind all layers, of x [b d]; values stand where attention would be."""
    heads, kv, ff = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim, cfg.intermediate_size

    def dot(x: jax.Array, name: str, layer: int) -> jax.Array:
        y = jax.lax.dot_general(x, weights[name][layer], INPUTS[first], preferred_element_type=jnp.float32)
        return y.astype(jnp.bfloat16)

    def norm(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + cfg.rms_norm_eps)).astype(jnp.bfloat16)

    for layer in range(cfg.num_layers):
        h = norm(x)
        if "qkv" in weights:
            q, k, v = jnp.split(dot(h, "qkv", layer), [heads, heads + kv], axis=1)
        else:
            q, k, v = (dot(h, name, layer) for name in "qkv")
        x = x + dot(q * jnp.tile(k + v, (1, heads // kv)), "o", layer)
        h = norm(x)
        if "gate_up" in weights:
            gate, up = jnp.split(dot(h, "gate_up", layer), [ff], axis=1)
        else:
            gate, up = dot(h, "gate", layer), dot(h, "up", layer)
        x = x + dot(jax.nn.silu(gate) * up, "down", layer)
    return x


def measure(shape: str, first: str, joined: bool, stacked: bool, batch: int, repeats: int) -> dict[str, Any]:
    """Returns the row of a layout."""
    cfg = LlamaConfig.from_hf(SHAPES[shape])
    weights, x = random_weights(cfg, first, joined, stacked), jnp.ones((batch, cfg.hidden_size), jnp.bfloat16)
    steps = jax.jit(lambda x, w: jax.lax.fori_loop(0, TURNS, lambda _, x: step(cfg, first, x, w), x))
    program = steps.lower(x, weights).compile()
    jax.block_until_ready(program(x, weights))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(program(x, weights))
        times.append((time.perf_counter() - began) / TURNS)
    memory = program.memory_analysis()
    return {
        **{"shape": shape, "first": first, "joined": joined, "stacked": stacked, "batch": batch},
        "us": 1e6 * min(times),
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(weights)),
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every layout."""
    options = parse_arguments(argv)
    arguments = sys.argv[1:] if argv is None else argv
    rows = []
    for shape in options.shapes:
        for first, joined, stacked in LAYOUTS:
            for batch in options.batches:
                rows.append(measure(shape, first, joined, stacked, batch, options.repeats))
                print(rows[-1], file=sys.stderr, flush=True)
    command = shlex.join(["python", "-m", "benchmarks.float_layouts", *arguments])
    write_record({"command": command, **machine(0), "rows": rows}, options.output)


if __name__ == "__main__":
    main()
