"""What static ranges cost, input by input: nats of a W8A8 file with ranges by token, static ones, and one kind static.

The file is one that `quantize --activations int8-static` wrote, so that its weights are the same in all rows: they
differ in how the inputs of linear layers are rounded. "float" rounds none of them.

Command: python -m benchmarks.static_inputs --models w8a8.lowbit --data valid.npy --windows 16 -o static_inputs.json
Hardware: any; SmolLM2-135M takes two CPU cores about 5 s a window and row.
Expected: docs/ptq.md.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.data import TextTokenizer, TokenWindows, open_windows
from lowbit.evals import evaluate, jax_predictor
from lowbit.export.packed import unpack_params
from lowbit.formats import PackedModel, read
from lowbit.llama import LINEARS, ActivationRounding, InputRounding, LlamaConfig
from lowbit.llama.activations import from_meta
from lowbit.tree import unflatten

STAGES = {
    "q, k, v": LINEARS[0:3],
    "o": LINEARS[3:4],
    "gate, up": LINEARS[4:6],
    "down": LINEARS[6:7],
}
"""Kernels that read one input, by name."""


def ways(static: Mapping[str, InputRounding]) -> dict[str, dict[str, InputRounding]]:
    """Returns the rows: a name, and how the inputs of each linear layer are rounded."""
    by_token = dict.fromkeys(static, InputRounding(8))
    alone = {
        f"{name} static": {path: static[path] if path in paths else by_token[path] for path in static}
        for name, paths in STAGES.items()
    }
    return {"float": {}, "by token": by_token, **alone, "static": dict(static)}


def measure(packed: PackedModel, windows: TokenWindows, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row a way to round the inputs."""
    cfg = LlamaConfig.from_hf(packed.config)
    rounding, ranges = from_meta(packed.meta, cfg)
    params: dict[str, Any] = unflatten(unpack_params(cfg, packed))
    rows = []
    for name, inputs in ways(dict(rounding.inputs)).items():
        began = time.monotonic()
        if options.rows and name not in options.rows:
            continue
        own = {path: state for path, state in ranges.items() if path in inputs and inputs[path].range == "static"}
        chosen = ActivationRounding(tuple(inputs.items()))
        predictor = jax_predictor.predictor(cfg, params, packed.tokenizer, chosen, own)
        nll = predictor.make_nll(options.batch, options.length, None)
        found = evaluate(nll, windows, batch_size=options.batch, first=options.windows)
        rows.append({"inputs": name, "nll": found.nll, "stderr": found.stderr, "seconds": time.monotonic() - began})
        print(f"{name}: {found.nll:.4f} nats/token", file=sys.stderr)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, nargs="+", metavar="FILE", help="packed files with static ranges")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="texts or .npy tokens to predict")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these ways to round (default: all)")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024, help="predictions in a window")
    parser.add_argument("--batch", type=int, default=4, help="windows at a time")
    parser.add_argument("-o", "--output", metavar="FILE")
    options = parser.parse_args(argv)
    records = []
    for model in options.models:
        packed = read(model, verify=True)
        vocab_size = LlamaConfig.from_hf(packed.config).vocab_size
        texts = not options.data[0].endswith(".npy")
        tokenizer = TextTokenizer.load(packed.tokenizer, vocab_size=vocab_size) if texts else None
        windows = open_windows(options.data, length=options.length, vocab_size=vocab_size, tokenizer=tokenizer)
        quantization = packed.meta["quantization"]
        records.append({"quantization": quantization, "rows": measure(packed, windows, options)})
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.static_inputs", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(0),
        "text": [Path(path).name for path in options.data],
        "windows": options.windows,
        "length": options.length,
        "models": records,
    }
    write_record(record, options.output)


if __name__ == "__main__":
    main()
