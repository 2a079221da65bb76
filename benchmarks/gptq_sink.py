"""How far rounding and GPTQ leave the first token of a sequence, which all others attend to.

For each kernel of some layers of the float model: the squared error of its outputs relative to their square, over all
tokens of calibration and over the first ones of the sequences alone, by rounding, by GPTQ from even second moments, and
by GPTQ from moments that weigh tokens by the attention they get.

Command: python -m benchmarks.gptq_sink --model SmolLM2-135M.gguf --data train.npy -o docs/results/gptq_sink_cpu.json
Hardware: any; two minutes on two CPU cores.
Expected: docs/ptq.md.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.data import TextTokenizer, open_windows
from lowbit.llama import LlamaConfig
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.models.layerwise import LayerSource, open_model
from lowbit.ptq import METHODS, Calibration, Options, Target, draw, make_target
from lowbit.ptq.calibration import Devices, embedded
from lowbit.ptq.model import relative_error
from lowbit.ptq.moments import Hidden, Weights, advance, attention_weights, moments
from lowbit.train.quantization import EMBEDDING
from lowbit.tree import unflatten


def measure_layer(cfg: LlamaConfig, flat: dict[str, Any], hidden: Hidden, target: Target) -> list[dict[str, Any]]:
    """Returns a row a kernel of one layer, whose inputs in the float model are `hidden`."""
    block = unflatten(flat)
    t = hidden.shape[2]
    first: Weights = jnp.zeros(hidden.shape[:3], jnp.float32).at[:, :, 0].set(t)
    attended = attention_weights(cfg, block, hidden)
    rows = []
    for stage in LINEAR_STAGES:
        even, by_attention, at_first = (
            moments(cfg, stage[0], block, hidden, weights=weights) for weights in (None, attended, first)
        )
        for path in stage:
            w = flat[path]
            made = {
                "rounding": METHODS["rtn"].round(path, w, None, target, Options()),
                "gptq": METHODS["gptq"].round(path, w, even, target, Options()),
                "gptq_attention": METHODS["gptq"].round(path, w, by_attention, target, Options()),
            }
            rows.append(
                {
                    "kernel": path,
                    "all": {name: float(relative_error(w, each.w_hat, even.gram)) for name, each in made.items()},
                    "first": {name: float(relative_error(w, each.w_hat, at_first.gram)) for name, each in made.items()},
                    "weight_of_first": float(jnp.mean(attended[:, :, 0]) / t),
                }
            )
    return rows


def measure(source: LayerSource, calibration: Calibration, layers: Sequence[int], target: Target) -> list[Any]:
    """Returns the rows of the named layers, counted from 0."""
    devices = Devices.of(jax.local_devices()[:1])
    hidden = embedded(source.outside(EMBEDDING), calibration, devices)
    rows = []
    for index in range(max(layers) + 1):
        flat = jax.device_put(source.layer(index), devices.first)
        if index in layers:
            rows += [{"layer": index, **row} for row in measure_layer(source.cfg, flat, hidden, target)]
        hidden = advance(source.cfg, unflatten(flat), hidden)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="SOURCE", help="float model")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="calibration: texts or .npy tokens")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 10, 20], help="counted from 0")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--granularity", type=int, default=64, help="inputs of a scale and zero point")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("-o", "--output", metavar="FILE")
    options = parser.parse_args(argv)
    source = open_model(options.model)
    files = source.tokenizer_files
    texts = not options.data[0].endswith(".npy")
    tokenizer = TextTokenizer.load(files, vocab_size=source.cfg.vocab_size) if texts else None
    windows = open_windows(options.data, length=options.length, vocab_size=source.cfg.vocab_size, tokenizer=tokenizer)
    calibration = draw(windows, options.sequences, 0, ", ".join(Path(path).name for path in options.data))
    target = make_target("zero_point", options.bits, options.granularity, "mse")
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.gptq_sink", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(0),
        "model": Path(options.model).name,
        "calibration": calibration.record(),
        "bits": options.bits,
        "granularity": options.granularity,
        "rows": measure(source, calibration, options.layers, target),
    }
    write_record(record, options.output)


if __name__ == "__main__":
    main()
