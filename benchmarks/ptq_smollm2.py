"""Every method without training at 8, 4, 3 and 2 bits: nats per token, bits per weight, seconds.

Each row is one quantization of the same model from the same calibration sequences, evaluated on the first windows of
each text. The file is written after every row; rows that it holds already are not made again.

Command: python -m benchmarks.ptq_smollm2 --model SmolLM2-135M.gguf --data train.npy --eval val.npy wikitext2.npy
         -o docs/results/ptq_smollm2_h100.json
Hardware: any. On the quickstart's model, whose windows are of 256 tokens:
         python -m benchmarks.ptq_smollm2 --model assets/quickstart/model --data assets/quickstart/text/train.jsonl
         --eval assets/quickstart/text/valid.jsonl --length 256 --eval-length 256
         -o docs/results/ptq_quickstart_cpu.json
Expected: docs/ptq.md.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine
from lowbit.atomic import write_atomically
from lowbit.data import TextTokenizer, TokenWindows, open_windows
from lowbit.errors import QuantizerError
from lowbit.evals import evaluate
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer, pretrained
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Calibration, Options, Plan, assemble, draw, make_target, quantize_layers
from lowbit.train.objectives import nll_function


class Row(NamedTuple):
    """One way to quantize; `range` None is the method's usual one."""

    label: str
    method: str
    grid: str
    granularity: str | int
    range: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


ROWS = (
    Row("rounding, min-max", "rtn", "integer", 64, "max"),
    Row("rounding, percentile", "rtn", "integer", 64, "percentile"),
    Row("rounding, mean square", "rtn", "integer", 64, "mse"),
    Row("rounding, zero point", "rtn", "zero_point", 64, "mse"),
    Row("ZeroQuant", "zeroquant", "zero_point", 64),
    Row("GPTQ", "gptq", "zero_point", 64),
    Row("GPTQ, act order", "gptq", "zero_point", 64, None, (("act_order", True), ("static_groups", True))),
    Row("GPTQ, symmetric", "gptq", "integer", 64),
    Row("GPTQ, one scale a channel", "gptq", "integer", "channel"),
    Row("GPTQ, ParetoQ's grid a channel", "gptq", "paretoq", "channel"),
    Row("GPFQ", "gpfq", "zero_point", 64),
    Row("AWQ", "awq", "zero_point", 64),
    Row("HQQ", "hqq", "float_zero", 64),
    Row("SmoothQuant, weights alone", "smoothquant", "zero_point", 64),
    Row("LLM.int8", "int8_outliers", "integer", "channel"),
    Row("k-means", "kmeans", "free", 64),
    Row("NF4", "rtn", "nf4", 64, "max"),
    Row("GPTQ to NF4", "gptq", "nf4", 64, "max"),
    Row("powers of two", "rtn", "power", 64, "max"),
    Row("product vectors", "product", "vectors", "channel"),
    Row("residual vectors", "residual", "vectors", "channel"),
)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="SOURCE", help="float model")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="calibration: texts or .npy tokens")
    parser.add_argument("--eval", required=True, nargs="+", metavar="FILE", help="texts or .npy tokens to predict")
    parser.add_argument("--bits", type=float, nargs="+", default=[8, 4, 3, 2], help="widths")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="only these rows")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a calibration sequence")
    parser.add_argument("--windows", type=int, default=128, help="of each text")
    parser.add_argument("--eval-length", type=int, default=1024, help="predictions in a window")
    parser.add_argument("--batch", type=int, default=8, help="windows at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration sequences")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="JSON to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the rows that the output lacks."""
    options = parse_arguments(argv)
    output = Path(options.output)
    source = pretrained.load(options.model)
    calibration = draw(_windows(options.data, options.length, source), options.sequences, options.seed, "calibration")
    texts = {Path(path).stem: _windows([path], options.eval_length, source) for path in options.eval}
    score = Scorer(source.cfg, texts, options)
    record = _begin(output, options, calibration, argv)
    if "float" not in record:
        record["float"] = {"evaluations": score(source.params)}
        _write(output, record)
    done = {(row["label"], row["bits"]) for row in record["rows"]}
    rows = [row for row in ROWS if options.rows is None or row.label in options.rows]
    for row in rows:
        for bits in options.bits:
            if (row.label, bits) in done:
                continue
            made = measure(source, row, bits, calibration, score)
            if made is not None:
                record["rows"].append(made)
                _write(output, record)
                nats = ", ".join(f"{name} {found['nll']:.4f}" for name, found in made["evaluations"].items())
                print(f"{row.label}, {bits:g} bits: {nats}; {made['seconds']:.1f} s", file=sys.stderr)
    return 0


def measure(
    source: Pretrained, row: Row, bits: float, calibration: Calibration, score: "Scorer"
) -> dict[str, Any] | None:
    """Returns one row; None for a width that its grid has not."""
    method = METHODS[row.method]
    width = int(bits) if float(bits).is_integer() else bits
    try:
        target = make_target(row.grid, width, row.granularity, method.ranges[0] if row.range is None else row.range)
    except QuantizerError:
        return None
    plan = Plan(method, target, Options(**dict(row.options)), calibration if method.needs_data else None)
    began = time.monotonic()
    layers = quantize_layers(source.cfg, source.params, plan)
    seconds = time.monotonic() - began
    model = assemble(source, layers, target)
    device = jax.local_devices()[0].memory_stats()
    return {
        "label": row.label,
        **plan.record(),
        "calibration": None,  # stated once, for all rows
        "needs_data": method.needs_data,
        "bits": float(bits),
        "bits_per_weight": model.bits,
        "bits_per_weight_model": model.model_bits,
        "packed": model.packable,
        "seconds": seconds,
        "peak_device_bytes": None if device is None else device["peak_bytes_in_use"],
        "evaluations": score(model.decoded()),
        "relative_error": float(np.mean(list(model.errors.values()))),
    }


class Scorer:
    """Nats per token of parameters on every text; one compiled program for all rows."""

    def __init__(self, cfg: LlamaConfig, texts: Mapping[str, TokenWindows], options: argparse.Namespace):
        self._texts, self._options = texts, options
        self._nll = jax.jit(nll_function(Transformer(cfg, jnp.float32), _chunks(options.eval_length)))

    def __call__(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an evaluation a text."""
        variables = jax.device_put({"params": params})
        results = {}
        for name, windows in self._texts.items():
            found = evaluate(
                lambda batch: self._nll(variables, jnp.asarray(batch)),
                windows,
                batch_size=self._options.batch,
                first=min(self._options.windows, len(windows)),
            )
            results[name] = {
                key: value for key, value in dataclasses.asdict(found).items() if key in ("nll", "stderr", "tokens")
            }
        return results


def _chunks(length: int) -> int:
    return next(n for n in (8, 4, 2, 1) if length % n == 0)


def _windows(paths: Sequence[str], length: int, source: Pretrained) -> TokenWindows:
    files = source.tokenizer_files
    is_text = not paths[0].endswith(".npy")
    tokenizer = TextTokenizer.load(files, vocab_size=source.cfg.vocab_size) if is_text else None
    return open_windows(paths, length=length, vocab_size=source.cfg.vocab_size, tokenizer=tokenizer)


def _begin(
    output: Path, options: argparse.Namespace, calibration: Calibration, argv: Sequence[str] | None
) -> dict[str, Any]:
    if output.is_file():
        record: dict[str, Any] = json.loads(output.read_text())
        return record
    stated = {key: value for key, value in calibration.record().items() if key != "source"}
    command = " ".join(["python -m benchmarks.ptq_smollm2", *map(shlex.quote, sys.argv[1:] if argv is None else argv)])
    return {
        "command": command,
        "machine": machine(options.seed),
        "model": Path(options.model).name,
        "calibration": {**stated, "source": [Path(path).name for path in options.data]},
        "eval_length": options.eval_length,
        "windows": options.windows,
        "rows": [],
    }


def _write(output: Path, record: Mapping[str, Any]) -> None:
    write_atomically(output, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
