"""What fine-tuning beside codes that stay is worth: PEQA, E2E-QP, QLoRA and LoftQ against rounding and GPTQ.

Each row is one model of one width: rounded, or trained on the same text for the same steps from one of those. It says
what the model predicts on the first windows of a text, and what its packed file's tensors take, scales and factors
included. The file is written after every row; rows that it holds already are not made again.

Command: nice python -m benchmarks.finetuning --model assets/quickstart/model --data assets/quickstart/text/train.jsonl
         --eval assets/quickstart/text/valid.jsonl -o docs/results/finetuning_quickstart_cpu.json
Hardware: any; the quickstart's model takes two idle CPU cores about half an hour.
         Where other work keeps them busy, OPENBLAS_NUM_THREADS=1 keeps threads of LoftQ's decompositions from waiting.
Expected: docs/finetuning.md.
"""

import argparse
import functools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.machine import machine
from lowbit import config as configs
from lowbit.atomic import write_atomically
from lowbit.cli.entry import main as command_line
from lowbit.config import ConfigDict
from lowbit.data import TextTokenizer, TokenWindows, open_windows
from lowbit.evals import jax_predictor
from lowbit.evals.perplexity import window_sums
from lowbit.export import pack_model
from lowbit.formats import summarize
from lowbit.models import pretrained
from lowbit.models.pretrained import Pretrained
from lowbit.train import load_trained
from lowbit.train import run as train
from lowbit.train.provenance import git_commit
from lowbit.train.trained import Trained
from lowbit.tree import Rule, fake_quant, flatten, lookup

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BATCH = 8
FLOAT = "float"


class Row(NamedTuple):
    """One way to a model of few bits.

    Attributes:
      label: of the table.
      start: method of `quantize` for the run that this one starts from; "" for the float model.
      config: by which it is trained, a file of `configs` with variants; "" for a row that is not trained.
      rates: learning rate by width; none for a start that is not trained.
      widths: that it is made at.
      rank: of adapters; None takes that of all rows.
    """

    label: str
    start: str
    config: str = ""
    rates: tuple[tuple[float, float], ...] = ()
    widths: tuple[float, ...] = (4.0, 3.0, 2.0)
    rank: int | None = None


SCALES = ((4.0, 5e-5), (3.0, 1e-4), (2.0, 3e-4))
FACTORS = ((4.0, 5e-4), (3.0, 1e-3), (2.0, 2e-3))
"""Learning rates by width: the coarser the grid, the further both go."""

ROWS = (
    Row("rounding", "rtn"),
    Row("rounding to NF4", "", widths=(4.0,)),
    Row("rounding to ParetoQ's grid", "", widths=(3.0, 2.0)),
    Row("rounding to NF4, 8-bit scales", "", "qlora:double", widths=(4.0,), rank=0),
    Row("rounding to ParetoQ's grid, 8-bit scales", "", "qlora:double", widths=(2.0,), rank=0),
    Row("GPTQ", "gptq"),
    Row("Block-AP", "block_ap"),
    Row("PEQA, from rounding", "rtn", "peqa", SCALES),
    Row("PEQA, from GPTQ", "gptq", "peqa", SCALES),
    Row("E2E-QP, from Block-AP", "block_ap", "efficientqat", SCALES),
    Row("QLoRA, from rounding", "rtn", "qlora:grid=zero_point", FACTORS),
    Row("QLoRA, from GPTQ", "gptq", "qlora:grid=zero_point", FACTORS),
    Row("QLoRA, from NF4", "", "qlora", FACTORS, widths=(4.0,)),
    Row("QLoRA, from ParetoQ's grid", "", "qlora", FACTORS, widths=(3.0, 2.0)),
    Row("QLoRA, from NF4, 8-bit scales", "", "qlora:double", FACTORS, widths=(4.0,)),
    Row("QLoRA, from ParetoQ's grid, 8-bit scales", "", "qlora:double", FACTORS, widths=(2.0,)),
    Row("LoftQ's start", "", "loftq"),
    Row("LoftQ, rank 4", "", "loftq", FACTORS, rank=4),
    Row("LoftQ", "", "loftq", FACTORS),
)
"""Rounding, GPTQ and Block-AP are to grids with zero points; LoftQ is to NF4 at 4 bits and to ParetoQ's below."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="SOURCE", help="float model")
    parser.add_argument("--data", required=True, metavar="FILE", help="to calibrate and to train on")
    parser.add_argument("--eval", required=True, metavar="FILE", help="to predict")
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2], help="widths")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="only these (default: all)")
    parser.add_argument("--rate", type=float, help="in place of the rows' own learning rates, for trials")
    parser.add_argument("--group", type=int, default=64, help="inputs that share a scale")
    parser.add_argument("--rank", type=int, default=16, help="of adapters")
    parser.add_argument("--sequences", type=int, default=64, help="of calibration")
    parser.add_argument("--length", type=int, default=256, help="tokens of a calibration sequence and of a window")
    parser.add_argument("--windows", type=int, default=64, help="of the text")
    parser.add_argument("--train-length", type=int, default=128, help="tokens of a training sequence")
    parser.add_argument("--tokens", type=int, default=100_000, help="trained on")
    parser.add_argument("--work", default="runs/finetuning", metavar="FOLDER", help="where runs are kept")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="JSON to write")
    return parser.parse_args(argv)


class Bench:
    """A model, its texts, and the record that rows are written to."""

    def __init__(self, options: argparse.Namespace, command: str, work: Path):
        self.options, self.work = options, work
        self.source: Pretrained = pretrained.load(options.model)
        self.text = self._windows(options.eval)
        told = vars(options).keys() - {"bits", "rows", "rate", "work", "output"}
        settings = {key: getattr(options, key) for key in sorted(told)}
        self.path = Path(options.output)
        self.record: dict[str, Any] = {"settings": settings, "rows": []}
        if self.path.is_file():
            self.record = json.loads(self.path.read_text())
            if self.record["settings"] != settings:
                raise SystemExit(f"{self.path} holds rows of other settings: remove it, or give another output")
        self.record |= {"command": command, "machine": machine(0)}

    def _windows(self, path: str) -> TokenWindows:
        files, size = self.source.tokenizer_files, self.source.cfg.vocab_size
        tokenizer = TextTokenizer.load(files, vocab_size=size) if "tokenizer.json" in files else None
        return open_windows([path], length=self.options.length, vocab_size=size, tokenizer=tokenizer)

    def add(self, row: Row, bits: float) -> None:
        """Makes a row, unless it is there."""
        rate = dict(row.rates).get(bits, 0.0) if self.options.rate is None else self.options.rate
        told = {"label": row.label, "bits": bits, "learning_rate": rate}
        if any(kept.items() >= told.items() for kept in self.record["rows"]):
            return
        if row.start and row.config:
            self._quantized(row.start, bits)  # which is no part of the time of this row
        began, found = time.monotonic(), dict[str, Any]()
        params: Any = self.source.params
        if row.label != FLOAT:
            run = load_trained(self._run(row, bits, rate))
            params = jax.jit(functools.partial(fake_quant, run.rules))(run.params, run.state)
            packed = pack_model(run.cfg, run.params, run.rules, run.state, {}, {})
            size = summarize(packed)
            found = {
                "adapter_bytes": sum(adapter.nbytes for adapter in packed.adapters().values()),
                "bits_per_weight": size.quantized_bits,
                "model_bits": size.model_bits,
                "bytes": size.tensor_bytes,
                "trained": _trained(run) if rate else 0,
            }
        made = time.monotonic() - began
        told |= {"git_commit": git_commit(), "seconds": made, **self._predicted(params), **found}
        self.record["rows"].append(told)
        self.save()
        print(f"{row.label}, {bits:g} bits: {told['nats']:.4f} nats/token, {made:.0f} s", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Writes what there is, in the order of the table."""
        order = [FLOAT, *(row.label for row in ROWS)]
        self.record["rows"].sort(key=lambda row: (-row["bits"], order.index(row["label"])))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self.record, indent=1, allow_nan=False) + "\n").encode())

    def _predicted(self, params: Any) -> dict[str, Any]:
        nll = jax_predictor.predictor(self.source.cfg, params, {}).make_nll(BATCH, self.options.length, None)
        sums = window_sums(nll, self.text, BATCH, self.options.windows)
        of_windows = [round(float(x), 5) for x in np.asarray(sums.nats) / np.asarray(sums.predictions)]
        return {"nats": float(sums.nats.sum() / sums.predictions.sum()), "window_nats": of_windows}

    def _run(self, row: Row, bits: float, rate: float) -> Path:
        """The folder of a row's run, made if it is not there."""
        started = self._quantized(row.start, bits) if row.start else None
        if started is not None and not row.config:
            return started
        folder = self.work / f"{''.join(filter(str.isalnum, row.label))}_{bits:g}_{rate:g}"
        if not folder.exists():
            config = self._config(row, bits, folder, started)
            config.optimizer.learning_rate = rate
            if not rate:  # a start: one step that moves nothing
                config.train.tokens = config.train.batch_size * config.train.sequence_length
            train(config)
        return folder

    def _quantized(self, method: str, bits: float) -> Path:
        """What `quantize` makes of the float model, on a grid with zero points."""
        folder, options = self.work / f"{method}_{bits:g}", self.options
        calibrates = method != "rtn"
        data = ["--data", options.data, "--length", str(options.length), "--sequences", str(options.sequences)]
        flags = ["--method", method, "--grid", "zero_point", "--bits", f"{bits:g}", "--granularity", str(options.group)]
        if not folder.exists():
            status = command_line(["quantize", options.model, *flags, *(data if calibrates else []), "-o", str(folder)])
            assert status == 0, f"quantize --method {method} failed"
        return folder

    def _config(self, row: Row, bits: float, folder: Path, started: Path | None) -> ConfigDict:
        file, _, variant = (row.config or "qlora").partition(":")
        spec = f"{CONFIGS / file}_smollm2.py:bits={bits:g}" + (f",{variant}" if variant else "")
        options = self.options
        settings = {
            "run_folder": folder,
            "model.source": started or options.model,
            "model.source_scales": started is not None,
            "model.compute_dtype": "float32",
            "data.train": options.data,
            "data.valid": "",
            "quant.granularity": options.group,
            "train.sequence_length": options.train_length,
            "train.loss_chunks": 1,
            "train.tokens": options.tokens,
            "log.recorder_every_steps": 0,
            "log.progress": "false",
        }
        config = configs.load(spec, [f"{key}={value}" for key, value in settings.items()])
        if config.adapters.rank:
            config.adapters.rank = (options.rank if row.rank is None else row.rank) if row.config else 0
        return config


def _trained(run: Trained) -> int:
    """How many numbers a run's optimizer moved."""
    frozen = [Rule(pattern, True) for pattern in run.config.optimizer.frozen]
    leaves = flatten({"quant": run.state["quant"]})
    return sum(leaf.size for path, leaf in leaves.items() if not lookup([*frozen, Rule(".*", False)], path))


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the rows that are missing."""
    options = parse_arguments(argv)
    command = shlex.join(["python", "-m", "benchmarks.finetuning", *(sys.argv[1:] if argv is None else argv)])
    chosen = [row for row in ROWS if not options.rows or row.label in options.rows]
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, command, work)
    bench.add(Row(FLOAT, ""), 16.0)
    for bits in map(float, options.bits):
        for row in chosen:
            if bits in row.widths:
                bench.add(row, bits)
    bench.save()


if __name__ == "__main__":
    main()
