"""From the shipped pretrained model to low-bit models that run, in a few minutes on two cores.

Takes the Llama in assets/quickstart/model to 4, 3, 2, 1.58 and 1 bit by quantization-aware fine-tuning on the novels
beside it, compares each width with plain rounding, exports packed files, checks that they are the trained models bit
for bit, lets the numpy runtime write text from them, and draws the report.

Command: make quickstart, or python -m experiments.quickstart --out runs/quickstart
Hardware: 2 CPU cores.
Expected: docs/results/quickstart.json.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowbit import config as configs
from lowbit import formats
from lowbit.atomic import write_atomically
from lowbit.cli import quantized
from lowbit.cli.quantized import Quantized
from lowbit.data import TextTokenizer, TokenWindows, byte_lengths, encode_files
from lowbit.errors import LowbitError, RunFolderError
from lowbit.evals import Evaluation, evaluate, jax_predictor
from lowbit.export import pack_model, verify
from lowbit.kernels import Runtime, Tokenizer, generate_text
from lowbit.models import pretrained
from lowbit.report.histograms import WeightHistogram
from lowbit.report.page import write_report
from lowbit.report.results import Row, rows_from
from lowbit.report.table import results_table
from lowbit.train import run
from lowbit.train.provenance import git_commit
from lowbit.tree import flatten, init_state, lookup
from lowbit.tree.apply import state_at

CONFIG = "configs/qat_quickstart.py"
WIDTHS = (4.0, 3.0, 2.0, 1.58, 1.0)
PROMPT = "The old house stood at the end of the lane, and"
SAMPLE = {"temperature": 0.7, "top_k": 40, "seed": 1}
SAMPLE_TOKENS = 80
VERIFIED_TOKENS = 32


class Quickstart:
    """One run of the quickstart: where it writes, what it evaluates on, and the rows so far."""

    def __init__(self, out: Path, widths: Sequence[float], overrides: Sequence[str]):
        # Every width's config is read before any work: a typo costs nothing.
        self.out = out
        self.configs = {bits: configs.load(f"{CONFIG}:bits={bits:g}", overrides) for bits in widths}
        self.config = self.configs[widths[0]]
        self.source = self.config.model.source
        self.loaded = pretrained.load(self.source)
        for bits, config in self.configs.items():
            with config.unlocked():
                config.run_folder = str(out / f"qat_w{bits:g}")
                config.log.every_steps = 2
                config.log.recorder_every_steps = 0  # its program differs by width, and compiling it costs seconds
                # Traced grids: the step compiled for the first width serves all.
                config.quant.layer_bits = (bits,) * self.loaded.cfg.num_layers
        tokenizer = TextTokenizer.load(self.loaded.tokenizer_files, vocab_size=self.loaded.cfg.vocab_size)
        self.byte_lengths = byte_lengths(tokenizer)
        length = self.config.train.sequence_length
        self.windows = TokenWindows((encode_files(self.config.data.valid, tokenizer),), length)
        self.rows: list[Row] = []
        self.began = time.monotonic()

    def rounded(self, method: str, bits: float) -> None:
        """A row without training: the float model, or rounding to nearest with scales from max|w| or of least error."""
        started = time.monotonic()
        kind, start = ("rtn", "mse") if method == "rtn_mse" else (method, "max")
        quant = {**self.config.quant.to_dict(), "method": kind, "bits": bits, "layer_bits": (), "scale_init": start}
        model = quantized.from_pretrained(self.source, quant)
        name = "float" if method == "float" else f"{method}_w{bits:g}"
        file = self.pack(model, name)
        seconds = time.monotonic() - started
        self.add(method, bits, self.evaluate(model), file, seconds)

    def trained(self, bits: float) -> None:
        """A row with quantization-aware training: train, pack, verify, write text."""
        started = time.monotonic()
        config = self.configs[bits]
        result = run(config)
        seconds = time.monotonic() - started
        model = quantized.from_run(config.run_folder)
        name = f"qat_w{bits:g}"
        file = self.pack(model, name)
        packed = formats.read(file, verify=True)
        tokens = self.windows[:2][:, :VERIFIED_TOKENS]
        verification = verify(packed, model.cfg, model.params, model.rules, model.state, tokens)
        print(verification)
        sample = PROMPT + "".join(generate_text(Runtime(packed), Tokenizer(packed), PROMPT, SAMPLE_TOKENS, **SAMPLE))
        (evaluation,) = result.evaluations.values()
        metrics = str((Path(config.run_folder) / "metrics.jsonl").relative_to(self.out))
        self.add("qat", bits, evaluation, file, seconds, verification.ok, sample, metrics)

    def pack(self, model: Quantized, name: str) -> Path:
        """Writes the packed file of a model and returns its path."""
        file = self.out / f"{name}.lowbit"
        meta = model.origin.to_meta()
        formats.write(file, pack_model(model.cfg, model.params, model.rules, model.state, model.tokenizer_files, meta))
        return file

    def evaluate(self, model: Quantized) -> Evaluation:
        """Scores a model as its packed file would decode, on the held-out text."""
        settings = self.config.evaluation
        predictor = jax_predictor.predictor(model.cfg, model.decoded(), model.tokenizer_files)
        nll = predictor.make_nll(settings.batch_size, self.config.train.sequence_length, None)
        first = settings.windows or None
        return evaluate(nll, self.windows, batch_size=settings.batch_size, first=first, byte_lengths=self.byte_lengths)

    def add(
        self,
        method: str,
        bits: float,
        evaluation: Evaluation,
        file: Path,
        seconds: float,
        verified: bool | None = None,
        sample: str | None = None,
        metrics: str | None = None,
    ) -> None:
        """Adds a row, and writes all rows so far: a run that is stopped leaves what it has."""
        summary = formats.summarize(formats.read(file), file.stat().st_size)
        row = {
            "method": method,
            "bits": bits,
            "nll": evaluation.nll,
            "perplexity": evaluation.perplexity,
            "bits_per_byte": evaluation.bits_per_byte,
            "bits_per_weight": summary.quantized_bits or 16.0,
            "bits_per_weight_model": summary.model_bits,
            "bytes": file.stat().st_size,
            "seconds": round(seconds, 1),
            "verified": verified,
            "sample": sample,
            "metrics": metrics,
        }
        self.rows += rows_from([row], "the quickstart")
        write_json(self.out / "results.json", [dataclasses.asdict(r) for r in self.rows])
        elapsed = time.monotonic() - self.began
        print(f"[{elapsed:4.0f} s] {self.rows[-1].name}: {evaluation.nll:.3f} nats/token", flush=True)

    def histogram(self, bits: float) -> WeightHistogram:
        """All quantized weights before and after training, in units of their scales."""
        model = quantized.from_run(str(self.out / f"qat_w{bits:g}"))
        start = init_state(model.rules, self.loaded.params)
        before, after = flatten(self.loaded.params), flatten(model.params)
        shares: tuple[list[Any], list[Any]] = ([], [])
        levels: tuple[float, ...] = ()
        for path, w in before.items():
            state = state_at(model.state, path)
            if "scale" in state:
                levels = lookup(model.rules, path).layer(0).grid.levels
                shares[0].append((w / state_at(start, path)["scale"]).ravel())
                shares[1].append((after[path] / state["scale"]).ravel())
        return WeightHistogram(f"{bits:g} bit", *(np.concatenate(s) for s in shares), levels)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, one level of indentation, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def machine() -> dict[str, Any]:
    """Facts of this machine for the report."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def put_aside(out: Path) -> None:
    """Renames the folder of an earlier run, so that nothing is lost and one command can be given twice."""
    if not out.exists():
        return
    number = next(n for n in range(1, 10_000) if not out.with_name(f"{out.name}.{n}").exists())
    kept = out.with_name(f"{out.name}.{number}")
    try:
        out.rename(kept)
    except OSError as error:
        raise RunFolderError(f"{out} cannot be put aside: {error}", "choose another --out") from error
    print(f"the earlier run is kept as {kept}")


def quickstart(out: Path, widths: Sequence[float] = WIDTHS, overrides: Sequence[str] = ()) -> list[Row]:
    """Runs everything and writes results.json, run.json, pareto.png, report.html and the packed models into `out`.

    Args:
      out: folder to write; an earlier one is put aside.
      widths: bits per weight, each trained and rounded.
      overrides: assignments to the config, as on the command line of `lowbit train`.

    Returns:
      The rows of results.json.
    """
    work = Quickstart(out, widths, overrides)
    put_aside(out)
    out.mkdir(parents=True)
    # Widths share their programs, and so do later runs.
    if not jax.config.jax_compilation_cache_dir:  # who has one keeps it
        jax.config.update("jax_compilation_cache_dir", str(out.parent / ".jax_cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    work.rounded("float", 16.0)
    for method in ("rtn", "rtn_mse"):
        for bits in widths:
            work.rounded(method, bits)
    for bits in widths:
        work.trained(bits)
    record = {
        "command": shlex.join(["python", "-m", "experiments.quickstart", *sys.argv[1:]]),
        "commit": git_commit() or "not in a git checkout",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": work.config.seed,
        "machine": machine(),
    }
    write_json(out / "run.json", record)
    report = write_report(out, [work.histogram(bits) for bits in widths])
    print()
    print(results_table(work.rows, "plain"))
    print(f"\n{time.monotonic() - work.began:.0f} s in all. Open the report: {report.resolve()}")
    narrowest = out / f"qat_w{min(widths):g}.lowbit"
    print(f"Let a packed model write: python -m lowbit generate {narrowest} --prompt {shlex.quote(PROMPT)}")
    return work.rows


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder to write")
    parser.add_argument("--widths", type=float, nargs="+", default=list(WIDTHS), help="bits per weight")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="config overrides, such as train.tokens=300000"
    )
    arguments = parser.parse_args()
    try:
        rows = quickstart(arguments.out, arguments.widths, arguments.set)
    except LowbitError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(row.verified is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
