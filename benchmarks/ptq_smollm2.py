"""Every method without training at 8, 4, 3 and 2 bits: nats, accuracies, bits per weight, seconds.

Each row is one quantization of the same model from the same calibration sequences, evaluated on the first windows of
each text and the first items of each task. The file is written after every row; rows that it holds already are not made
again, so that the same command goes on where it was stopped (`--seconds` stops it).

Command: python -m benchmarks.ptq_smollm2 --model SmolLM2-135M.gguf --data train.npy --eval wikitext2.npy
         --tasks arc_easy=arc_easy.jsonl piqa=piqa.jsonl boolq=boolq.jsonl -o docs/results/ptq_smollm2_h100.json
On several GPUs, each process makes its share of the rows, and the last command puts them together:
         CUDA_VISIBLE_DEVICES=0 python -m benchmarks.ptq_smollm2 ... --share 0/4 -o part0.json   (and so on)
         python -m benchmarks.ptq_smollm2 --merge part?.json -o docs/results/ptq_smollm2_h100.json
Hardware: any. On the quickstart's model, whose windows are of 256 tokens:
         python -m benchmarks.ptq_smollm2 --model assets/quickstart/model --data assets/quickstart/text/train.jsonl
         --eval assets/quickstart/text/valid.jsonl --length 256 --eval-length 256
         -o docs/results/ptq_quickstart_cpu.json
Expected: docs/ptq.md.
"""

import argparse
import dataclasses
import functools
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
from lowbit.evals import evaluate, jax_predictor
from lowbit.evals.encoding import first_token
from lowbit.evals.predictor import Predictor
from lowbit.evals.scoring import BatchScorer
from lowbit.evals.tasks import Item, evaluate_task, read_items, task
from lowbit.llama import FLOAT_ACTIVATIONS, ActivationRounding
from lowbit.models import Transformer, pretrained
from lowbit.models.activations import range_variables, rounding_hooks
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Activations, Calibration, Options, Plan, assemble, draw, make_target, quantize_layers
from lowbit.train.objectives import nll_function
from lowbit.train.provenance import git_commit


class Row(NamedTuple):
    """One way to quantize; `range` None is the method's usual one."""

    label: str
    method: str
    grid: str
    granularity: str | int
    range: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    activations: Activations | None = None


STATIC = (("alpha", 0.75),)
"""Static ranges want more of the outliers in the weights than ranges by token do."""

ORDERED = (("act_order", True), ("static_groups", True))
EVEN, ATTENDED = (("token_weights", "even"),), (("token_weights", "attention"),)
"""What tokens of calibration count: the papers' way, and by the attention that they get."""

ROWS = (
    Row("rounding, min-max", "rtn", "integer", 64, "max"),
    Row("rounding, percentile", "rtn", "integer", 64, "percentile"),
    Row("rounding, mean square", "rtn", "integer", 64, "mse"),
    Row("rounding, zero point", "rtn", "zero_point", 64, "mse"),
    Row("ZeroQuant", "zeroquant", "zero_point", 64),
    Row("ZeroQuant's distillation, kernel by kernel", "lkd", "zero_point", 64),
    Row("GPTQ", "gptq", "zero_point", 64, None, EVEN),
    Row("GPTQ, act order", "gptq", "zero_point", 64, None, (*ORDERED, *EVEN)),
    Row("GPTQ, attended tokens", "gptq", "zero_point", 64, None, ATTENDED),
    Row("GPTQ, act order, attended tokens", "gptq", "zero_point", 64, None, (*ORDERED, *ATTENDED)),
    Row("GPTQ, symmetric", "gptq", "integer", 64, None, EVEN),
    Row("GPTQ, one scale a channel", "gptq", "integer", "channel", None, EVEN),
    Row("GPTQ, ParetoQ's grid a channel", "gptq", "paretoq", "channel", None, EVEN),
    Row("GPTQ, ParetoQ's grid, attended tokens", "gptq", "paretoq", "channel", None, ATTENDED),
    Row("Block-AP", "block_ap", "zero_point", 64),
    Row("GPFQ", "gpfq", "zero_point", 64),
    Row("AWQ", "awq", "zero_point", 64),
    Row("HQQ", "hqq", "float_zero", 64),
    Row("SmoothQuant, weights alone", "smoothquant", "zero_point", 64),
    Row("LLM.int8", "int8_outliers", "integer", "channel"),
    Row("rounding, inputs by token", "rtn", "integer", "channel", activations=Activations("int8-dynamic")),
    Row("rounding, inputs static", "rtn", "integer", "channel", activations=Activations("int8-static")),
    Row("SmoothQuant, inputs by token", "smoothquant", "integer", "channel", activations=Activations("int8-dynamic")),
    Row("SmoothQuant, inputs mixed", "smoothquant", "integer", "channel", None, STATIC, Activations("int8-mixed")),
    Row("SmoothQuant, inputs static", "smoothquant", "integer", "channel", None, STATIC, Activations("int8-static")),
    Row("k-means", "kmeans", "free", 64),
    Row("NF4", "rtn", "nf4", 64, "max"),
    Row("GPTQ to NF4", "gptq", "nf4", 64, "max", EVEN),
    Row("powers of two", "rtn", "power", 64, "max"),
    Row("product vectors", "product", "vectors", "channel"),
    Row("residual vectors", "residual", "vectors", "channel"),
)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="put the rows of other outputs into one, no more")
    parser.add_argument("--model", metavar="SOURCE", help="float model")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="calibration: texts or .npy tokens")
    parser.add_argument("--eval", nargs="+", metavar="FILE", help="texts or .npy tokens to predict")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME=FILE", help="zero-shot tasks and their JSONL")
    parser.add_argument("--items", type=int, help="first items of each task (default: all)")
    parser.add_argument("--bits", type=float, nargs="+", default=[8, 4, 3, 2], help="widths")
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="only these rows, by label or by method")
    parser.add_argument("--share", metavar="I/N", default="0/1", help="only every N-th of them, from the I-th")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after that (default: never)")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a calibration sequence")
    parser.add_argument("--windows", type=int, default=128, help="of each text")
    parser.add_argument("--eval-length", type=int, default=1024, help="predictions in a window")
    parser.add_argument("--batch", type=int, default=8, help="windows at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration sequences")
    parser.add_argument("--task-batch", type=int, default=64, help="choices of a task at a time")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="JSON to write")
    options = parser.parse_args(argv)
    if options.merge is None and not (options.model and options.data and options.eval):
        parser.error("--model, --data and --eval are needed, or --merge")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the rows that the output lacks, or puts outputs together."""
    began = time.monotonic()
    options = parse_arguments(argv)
    output = Path(options.output)
    if options.merge is not None:
        _write(output, merged([json.loads(Path(part).read_text()) for part in options.merge]))
        return 0
    source = pretrained.load(options.model)
    calibration = draw(_windows(options.data, options.length, source), options.sequences, options.seed, "calibration")
    score = Scorer(source, options)
    record = _begin(output, options, calibration, argv)
    if "float" not in record:
        record["float"] = score({"params": source.params}, FLOAT_ACTIVATIONS)
        _write(output, record)
    done = {(row["label"], row["bits"]) for row in record["rows"]}
    for row, bits in jobs(options):
        if (row.label, bits) in done:
            continue
        if time.monotonic() - began > options.seconds:
            print("out of time: the same command goes on", file=sys.stderr)
            return 1
        made = {"git_commit": git_commit(), **measure(source, row, bits, calibration, score)}
        record["rows"].append(made)
        _write(output, record)
        nats = ", ".join(f"{name} {found['nll']:.4f}" for name, found in made["evaluations"].items())
        hits = ", ".join(f"{name} {found['acc']['value']:.3f}" for name, found in made["tasks"].items())
        took = f"{made['seconds']:.1f} s, and {made['evaluation_seconds']:.1f} s to evaluate"
        print(f"{row.label}, {bits:g} bits: {nats}; {hits}; {took}", file=sys.stderr, flush=True)
    return 0


def jobs(options: argparse.Namespace) -> list[tuple[Row, float]]:
    """Returns the rows and widths that this process makes."""
    chosen = [row for row in ROWS if not options.methods or {row.label, row.method} & set(options.methods)]
    every = [(row, float(bits)) for row in chosen for bits in options.bits if make_plan(row, bits, None) is not None]
    first, _, count = options.share.partition("/")
    return every[int(first) :: int(count)]


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one record of the rows of several, which must be of one model, calibration and evaluation.

    Each row says of which commit it is; of a row in several parts the last is taken. A part may be merged itself.

    Raises:
      ValueError: they are not.
    """
    first = parts[0]
    for part in parts[1:]:
        odd = [key for key in ("model", "calibration", "eval_length", "windows", "items") if part[key] != first[key]]
        if odd:
            raise ValueError(f"records of different {', '.join(odd)} make no table")
    rows = {
        (row["label"], row["bits"]): {"git_commit": part["machine"]["git_commit"], **row}
        for part in parts
        for row in part["rows"]
    }
    order = [row.label for row in ROWS]
    ordered = sorted(rows.values(), key=lambda row: (order.index(row["label"]), -row["bits"]))
    commands = dict.fromkeys(command for part in parts for command in _commands(part))
    return {**first, "command": list(commands), "rows": ordered}


def make_plan(row: Row, bits: float, calibration: Calibration | None) -> Plan | None:
    """Returns what a row does at a width; None where its grid has no such width, or inputs of 8 bits meet fewer."""
    method = METHODS[row.method]
    if row.activations is not None and bits != 8:
        return None
    width = int(bits) if float(bits).is_integer() else bits
    try:
        target = make_target(row.grid, width, row.granularity, method.ranges[0] if row.range is None else row.range)
    except QuantizerError:
        return None
    plan = Plan(method, target, Options(**dict(row.options)), None, row.activations)
    return dataclasses.replace(plan, calibration=calibration) if plan.needs_data else plan


def measure(source: Pretrained, row: Row, bits: float, calibration: Calibration, score: "Scorer") -> dict[str, Any]:
    """Returns one row; seconds of the quantization, compilation included, and of the evaluation."""
    plan = make_plan(row, bits, calibration)
    assert plan is not None, (row, bits)
    began = time.monotonic()
    in_memory = ModelInMemory(source)
    layers = quantize_layers(in_memory, plan)
    seconds = time.monotonic() - began
    model = assemble(in_memory, layers, plan.target)
    rounding = FLOAT_ACTIVATIONS if row.activations is None else row.activations.rounding()
    began = time.monotonic()
    found = score({"params": model.decoded(), "grid": range_variables(model.ranges)}, rounding)
    device = jax.local_devices()[0].memory_stats()
    return {
        "label": row.label,
        **plan.record(),
        "calibration": None,  # stated once, for all rows
        "needs_data": plan.needs_data,
        "bits": float(bits),
        "bits_per_weight": model.summary.bits,
        "bits_per_weight_model": model.summary.model_bits,
        "packed": model.summary.packable,
        "seconds": seconds,
        "evaluation_seconds": time.monotonic() - began,
        "peak_device_bytes": None if device is None else device["peak_bytes_in_use"],
        **found,
        "relative_error": float(np.mean(list(model.summary.errors.values()))),
    }


class Scorer:
    """Nats per token on every text and accuracies on every task; programs are compiled once for all rows."""

    def __init__(self, source: Pretrained, options: argparse.Namespace):
        self._source, self._options = source, options
        self._texts = {Path(path).stem: _windows([path], options.eval_length, source) for path in options.eval}
        self._items: dict[str, list[Item]] = {}
        for spec in options.tasks:
            name, _, path = spec.partition("=")
            self._items[name] = read_items(path, task(name).read, options.items)
        self._programs = functools.cache(self._compiled)

    def __call__(self, variables: Mapping[str, Any], rounding: ActivationRounding) -> dict[str, Any]:
        """Returns {"evaluations": by text, "tasks": by task} of the variables of the model."""
        cfg, files = self._source.cfg, self._source.tokenizer_files
        placed = jax.device_put(dict(variables))
        nll, scores = (functools.partial(program, placed) for program in self._programs(rounding))
        evaluations = {name: self._nats(nll, windows) for name, windows in self._texts.items()}
        model = Predictor(cfg, files, "jax", lambda *_: nll, lambda _: scores, lambda _: nll)
        scorer, tasks = BatchScorer(model, self._options.task_batch), {}
        for name, items in self._items.items():
            tokenizer = TextTokenizer.load(files, vocab_size=cfg.vocab_size)
            found = evaluate_task(scorer, tokenizer, first_token(cfg, tokenizer), task(name), items)
            tasks[name] = {metric: dataclasses.asdict(value) for metric, value in found.metrics.items()}
        return {"evaluations": evaluations, "tasks": tasks}

    def _nats(self, nll: Any, windows: TokenWindows) -> dict[str, Any]:
        first = min(self._options.windows, len(windows))
        found = evaluate(lambda batch: nll(jnp.asarray(batch)), windows, batch_size=self._options.batch, first=first)
        return {key: value for key, value in dataclasses.asdict(found).items() if key in ("nll", "stderr", "tokens")}

    def _compiled(self, rounding: ActivationRounding) -> tuple[Any, Any]:
        model = Transformer(self._source.cfg, jnp.float32, hooks=rounding_hooks(rounding))
        return (
            jax.jit(nll_function(model, _chunks(self._options.eval_length))),
            jax.jit(functools.partial(jax_predictor.scores, model)),
        )


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
    command = " ".join(["python -m benchmarks.ptq_smollm2", *map(shlex.quote, sys.argv[1:] if argv is None else argv)])
    if output.is_file():
        record: dict[str, Any] = json.loads(output.read_text())
        told = _commands(record)
        return record if command in told else {**record, "command": [*told, command]}
    stated = {key: value for key, value in calibration.record().items() if key != "source"}
    return {
        "command": command,
        "machine": machine(options.seed),
        "model": Path(options.model).name,
        "calibration": {**stated, "source": [Path(path).name for path in options.data]},
        "eval_length": options.eval_length,
        "windows": options.windows,
        "items": options.items,
        "rows": [],
    }


def _commands(record: Mapping[str, Any]) -> list[str]:
    """The commands that made a record: one, or those of its parts."""
    told = record["command"]
    return list(told) if isinstance(told, list) else [told]


def _write(output: Path, record: Mapping[str, Any]) -> None:
    write_atomically(output, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
