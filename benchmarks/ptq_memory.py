"""How much of the host's memory a quantization takes, beside what was estimated before it began.

Writes a random model of the given sizes as safetensors shards, one layer at a time, then runs `quantize` on it in a
process of its own, whose highest resident set (VmHWM) is what the record says. Memory of mapped files counts.

Command: python -m benchmarks.ptq_memory --methods rtn gptq -o docs/results/quantize_memory_cpu.json
Hardware: a CPU, where the layers are computed in the host's memory too; 3 GB of memory and 8 GB of disk for 1.1 B
weights. `--layers` for less time.
Expected: docs/ptq.md.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks.machine import machine
from benchmarks.record import write_record
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models.hf import hf_name
from lowbit.models.stacking import is_transposed
from lowbit.ptq import METHODS, Calibration, Options, Plan, make_target
from lowbit.ptq.memory import host_memory

DTYPE = np.dtype(ml_dtypes.bfloat16)


def write_random_model(folder: Path, cfg: LlamaConfig) -> int:
    """Writes a shard a layer, and one of what lies outside; returns how many weights there are."""
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    weights = 0
    for layer in (None, *range(cfg.num_layers)):
        tensors = {}
        for path, shape in param_shapes(cfg).items():
            if path.startswith(LAYER_PREFIX) != (layer is not None):
                continue
            own = shape if layer is None else shape[1:]
            values = rng.standard_normal(own, np.float32) * np.float32(0.02) if len(own) == 2 else np.ones(own)
            tensors[hf_name(path, layer)] = np.ascontiguousarray(values.T if is_transposed(path) else values).astype(
                DTYPE
            )
            weights += values.size
        file = f"model-{0 if layer is None else layer + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "config.json").write_text(json.dumps(cfg.to_hf()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weights


def measure(folder: Path, cfg: LlamaConfig, options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Returns the peak of one quantization of the model in a folder, and its estimate."""
    method = METHODS[name]
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, options.sequences * options.length + 1)
    np.save(folder / "tokens.npy", tokens.astype(np.uint16))
    output = folder / f"{name}.lowbit"
    data = [
        "--data",
        str(folder / "tokens.npy"),
        "--sequences",
        str(options.sequences),
        "--length",
        str(options.length),
    ]
    command = [sys.executable, "-m", "lowbit", "quantize", str(folder), "--method", name, "--bits", str(options.bits)]
    command += ["--granularity", "64", "-o", str(output), *(data if method.needs_data else [])]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    target = make_target(method.grids[0], options.bits, 64, method.ranges[0])
    shape = (options.sequences, options.length)
    calibration = Calibration(np.zeros(shape, np.int32), 0, "") if method.needs_data else None
    needed = host_memory(cfg, Plan(method, target, Options(), calibration), packs=True, windows=(0, 0), on_host=True)
    record = json.loads(output.with_name(f"{output.name}.json").read_text())
    return {
        "method": name,
        "bits": options.bits,
        "calibration_tokens": options.sequences * options.length if method.needs_data else 0,
        "seconds": seconds,
        "estimated_bytes": needed.peak,
        "peak_host_bytes": record["peak_host_bytes"],
        "file_bytes": output.stat().st_size,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON after each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq"], metavar="NAME")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--sequences", type=int, default=16, help="of calibration")
    parser.add_argument("--length", type=int, default=512, help="tokens of one")
    parser.add_argument("-o", "--output", metavar="FILE")
    options = parser.parse_args(argv)
    heads = options.hidden // 64
    cfg = LlamaConfig(
        options.vocabulary,
        options.hidden,
        options.intermediate,
        options.layers,
        num_heads=heads,
        num_kv_heads=max(1, heads // 8),
        head_dim=64,
        tie_embeddings=False,
        max_positions=2048,
    )
    with tempfile.TemporaryDirectory(prefix="ptq_memory_") as name:
        weights = write_random_model(Path(name), cfg)
        command = shlex.join(["python", "-m", "benchmarks.ptq_memory", *(sys.argv[1:] if argv is None else argv)])
        rows: list[dict[str, Any]] = []
        sizes = {"weights": weights, "float32_bytes": 4 * weights}
        record = {"command": command, "machine": machine(0), **sizes, "rows": rows}
        for method in options.methods:
            row = measure(Path(name), cfg, options, method)
            rows.append(row)
            write_record(record, options.output)
            gigabytes = {key: round(row[key] / 1e9, 2) for key in ("estimated_bytes", "peak_host_bytes")}
            print(f"{method}: {gigabytes}, float32 {4 * weights / 1e9:.2f}, {row['seconds']:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
