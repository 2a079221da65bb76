"""What widths of their own for all matrices are worth: allocated against uniform ones of the same bytes.

For each budget, the widths that each measure of loss chooses are compared with plain ones that take as many bytes: one
width for all, or where the budget lies between two, every second layer at the wider one. Every choice is rounded,
quantized by GPTQ, and trained for a little while, and predicts the first windows of a text. The file is written after
every row; rows that it holds already are not made again.

Command: nice python -m benchmarks.mixed_precision --model assets/quickstart/model
         --data assets/quickstart/text/train.jsonl --eval assets/quickstart/text/valid.jsonl
         --config configs/qat_quickstart.py --seeds 0 1 -o docs/results/mixed_precision_quickstart_cpu.json
Hardware: any; the quickstart's model takes two busy CPU cores an hour, most of it training and the measure "kl".
Expected: docs/mixed_precision.md.
"""

import argparse
import dataclasses
import itertools
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from lowbit import config as configs
from lowbit.atomic import write_atomically
from lowbit.data import TextTokenizer, TokenWindows, open_windows
from lowbit.evals import jax_predictor
from lowbit.evals.perplexity import window_sums
from lowbit.llama import LlamaConfig
from lowbit.mixed import Sensitivities, Trial, allocate, allocated_bytes, measure_by_name
from lowbit.mixed.trial import kernel_weights
from lowbit.models import pretrained
from lowbit.models.layerwise import ModelInMemory
from lowbit.ptq import Calibration, Options, Plan, Target, assemble, draw, make_target, method_by_name, quantize_layers
from lowbit.ptq.widths import Widths
from lowbit.train import run as train
from lowbit.train.sources import load_as_it_predicts

UNTRAINED = {"rounding": "rtn", "GPTQ": "gptq"}
"""Ways that need no training, and their methods."""

QAT = "QAT"

MEASUREMENTS = {
    "gradient": ("gradient", 8),
    "gradient, few": ("gradient", 1),
    "hessian": ("hessian", 1),
    "kl": ("kl", 1),
}
"""Of losses: by what, and on how many times the sequences of calibration. A gradient is a sample for each of them."""

BATCH = 8


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="SOURCE", help="float model")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="calibration: texts or .npy tokens")
    parser.add_argument("--eval", required=True, nargs="+", metavar="FILE", help="texts or .npy tokens to predict")
    parser.add_argument("--config", metavar="FILE", help="to train by, with the variant bits; its data and its budget")
    parser.add_argument("--budgets", type=float, nargs="+", default=[3.0, 2.5], help="bits/weight of codes")
    parser.add_argument("--widths", type=float, nargs="+", default=[2, 3, 4], help="to choose from")
    parser.add_argument("--by", nargs="+", default=list(MEASUREMENTS), help="measures of loss")
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--ways", nargs="+", default=[*UNTRAINED, QAT], help="what becomes of each choice")
    parser.add_argument("--sequences", type=int, default=32, help="of calibration")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window and of a calibration sequence")
    parser.add_argument("--windows", type=int, default=128, help="of the text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="JSON to write")
    return parser.parse_args(argv)


def plain_widths(paths: Sequence[str], layers: int, widths: Sequence[float], bits: float) -> dict[str, Widths]:
    """Returns choices that nobody has to measure anything for, by name.

    One width for all where there is one of so many bits, else the two around it in turn, from layer to layer.

    Raises:
      ValueError: bits outside of the widths.
    """
    if bits in widths:
        return {f"{bits:g} bits all": Widths(dict.fromkeys(paths, (bits,) * layers))}
    pairs = [(low, high) for low, high in itertools.pairwise(sorted(widths)) if low < bits < high]
    if not pairs:
        raise ValueError(f"{bits:g} bits lie outside of the widths {list(widths)}")
    low, high = pairs[0]
    even = tuple(high if layer % 2 == 0 else low for layer in range(layers))
    odd = tuple(low if layer % 2 == 0 else high for layer in range(layers))
    return {
        f"{high:g} bits in even layers, {low:g} in odd": Widths(dict.fromkeys(paths, even)),
        f"{low:g} bits in even layers, {high:g} in odd": Widths(dict.fromkeys(paths, odd)),
    }


class Bench:
    """A model, its calibration, its text, and the record that rows are written to."""

    def __init__(self, options: argparse.Namespace, command: str):
        self.options = options
        loaded = pretrained.load(options.model)
        self.source = ModelInMemory(loaded)
        granularity = int(options.granularity) if options.granularity.isdecimal() else options.granularity
        self.target: Target = make_target("paretoq", max(options.widths), granularity, "mse")
        calibration = draw(self._windows(options.data), options.sequences, 0, ", ".join(options.data))
        self.calibration: Calibration = calibration
        self.text = self._windows(options.eval)
        settings = {
            "model": options.model,
            "granularity": options.granularity,
            "widths": options.widths,
            "calibration": calibration.record(),
            "eval": {"texts": options.eval, "windows": options.windows, "length": options.length},
            "config": options.config,
        }
        self.path = Path(options.output)
        self.record: dict[str, Any] = {"settings": settings, "measures": {}, "choices": [], "rows": []}
        if self.path.is_file():
            kept = json.loads(self.path.read_text())
            if kept["settings"] != json.loads(json.dumps(settings)):
                raise SystemExit(f"{self.path} holds rows of other settings: remove it, or give another output")
            self.record = kept
        self.record |= {"command": command, "machine": machine(0)}

    @property
    def cfg(self) -> LlamaConfig:
        """Sizes of the model."""
        return self.source.cfg

    def _windows(self, paths: Sequence[str]) -> TokenWindows:
        files, size = self.source.tokenizer_files, self.cfg.vocab_size
        tokenizer = TextTokenizer.load(files, vocab_size=size) if "tokenizer.json" in files else None
        return open_windows(paths, length=self.options.length, vocab_size=size, tokenizer=tokenizer)

    def save(self) -> None:
        """Writes what there is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self.record, indent=1, allow_nan=False) + "\n").encode())

    def sensitivities(self, name: str) -> Sensitivities:
        """Measures what rounding each matrix by itself loses, or reads what was measured before."""
        by, times = MEASUREMENTS[name]
        widths = tuple(sorted(map(float, self.options.widths)))
        if name not in self.record["measures"]:
            sequences = times * self.options.sequences
            calibration = draw(self._windows(self.options.data), sequences, 0, self.calibration.source)
            trial = Trial(Plan(method_by_name("rtn"), self.target, Options(), calibration), widths)
            began = time.monotonic()
            found = measure_by_name(by)(self.source, trial, None, None)
            layers = [
                {path: losses[index].tolist() for path, losses in found.losses.items()}
                for index in range(self.cfg.num_layers)
            ]
            seconds = time.monotonic() - began
            self.record["measures"][name] = {"sequences": sequences, "seconds": seconds, "losses": layers}
            self.save()
        return Sensitivities.of_rows(by, widths, self.record["measures"][name]["losses"])

    def row(self, choice: Mapping[str, Any], way: str, seed: int, make: Callable[[], Any]) -> None:
        """Adds how well the parameters that `make` returns predict the text, unless that is known."""
        row = {"budget": choice["budget"], "choice": choice["name"], "way": way, "seed": seed}
        if any(kept.items() >= row.items() for kept in self.record["rows"]):
            return
        began = time.monotonic()
        nll = jax_predictor.predictor(self.cfg, make(), {}).make_nll(BATCH, self.options.length, None)
        made = time.monotonic() - began
        sums = window_sums(nll, self.text, BATCH, self.options.windows)
        nats = float(sums.nats.sum() / sums.predictions.sum())
        of_windows = [round(float(x), 5) for x in sums.nats / sums.predictions]
        self.record["rows"].append({**row, "nats": nats, "seconds": made, "window_nats": of_windows})
        self.save()
        print(f"{row['budget']:g} bits, {row['choice']}, {way}, seed {seed}: {nats:.4f} nats/token", file=sys.stderr)

    def quantized(self, widths: Widths, method: str) -> Any:
        """Returns the parameters that a model quantized without training computes with."""
        plan = Plan(method_by_name(method), self.target, Options(), self.calibration, widths=widths)
        if not plan.method.reads_moments:
            plan = dataclasses.replace(plan, calibration=None)
        return assemble(self.source, quantize_layers(self.source, plan), self.target).decoded()

    def trained(self, widths: Widths, budget: float, seed: int) -> Any:
        """Returns the parameters that a model trained at these widths computes with."""
        with tempfile.TemporaryDirectory() as folder:
            run_folder = f"{folder}/run"
            settings = [f"model.source={self.options.model}", f"run_folder={run_folder}", f"seed={seed}"]
            config = configs.load(f"{self.options.config}:bits={math.floor(budget)}", [*settings, "data.valid="])
            config.quant.overrides = widths.overrides(self.target)
            train(config)
            return load_as_it_predicts(run_folder).params


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the rows that are missing."""
    options = parse_arguments(argv)
    command = shlex.join(["python", "-m", "benchmarks.mixed_precision", *(sys.argv[1:] if argv is None else argv)])
    bench = Bench(options, command)
    found = {by: bench.sensitivities(by) for by in options.by}
    paths = list(next(iter(found.values())).losses)
    chosen: list[tuple[dict[str, Any], Widths]] = []
    weights = kernel_weights(bench.cfg)
    for budget in options.budgets:
        plain = plain_widths(paths, bench.cfg.num_layers, options.widths, budget)
        first = allocated_bytes(bench.cfg, bench.target, next(iter(plain.values())))
        choices = dict(plain)
        for by, sensitivities in found.items():
            choices[f"by {by}"] = allocate(bench.cfg, bench.target, sensitivities, 8 * first / weights).widths
        for name, widths in choices.items():
            nbytes = allocated_bytes(bench.cfg, bench.target, widths)
            told = {path: list(of_layers) for path, of_layers in widths.by_path.items()}
            predicted = {by: _predicted(sensitivities, widths) for by, sensitivities in found.items()}
            choice = {"budget": budget, "name": name, "bytes": nbytes, "bits_per_weight": 8 * nbytes / weights}
            chosen.append(({**choice, "predicted": predicted, "widths": told}, widths))
    bench.record["choices"] = [choice for choice, _ in chosen]
    bench.save()
    bench.row({"budget": 16.0, "name": "float"}, "float", 0, lambda: bench.source.load().params)
    for way in options.ways:
        for seed in options.seeds if way == QAT else [0]:
            for choice, widths in chosen:
                if way == QAT and choice["name"] == "by gradient, few":
                    continue  # training is the longest of all, and its choice is known from the other ways
                if way == QAT:
                    bench.row(choice, way, seed, lambda w=widths, c=choice, s=seed: bench.trained(w, c["budget"], s))
                else:
                    bench.row(choice, way, seed, lambda w=widths, m=UNTRAINED[way]: bench.quantized(w, m))
    bench.save()


def _predicted(sensitivities: Sensitivities, widths: Widths) -> float:
    return float(
        sum(
            sensitivities.losses[path][layer, sensitivities.widths.index(bits)]
            for path, of_layers in widths.by_path.items()
            for layer, bits in enumerate(of_layers)
        )
    )


if __name__ == "__main__":
    main()
