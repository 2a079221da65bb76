"""Scores tasks in several ways and writes how far they agree.

The ways are `lowbit.evals.tasks`, lm-evaluation-harness on lowbit's model, and, for a float Hugging Face folder, the
harness on transformers' model of it. Tasks are read from rows with `choices` and `label`.

Command: python scripts/compare_with_harness.py --data ../shared/data/eval --tasks arc_easy=100 piqa=100 \
             --float folder --packed model.lowbit -o docs/results/harness_agreement.json
Goes on where it was stopped: what the output has of this many items is not scored again. 200 items of all three tasks
take a model of 135 M weights about half an hour on two cores, for each way.
Needs the extra `harness`; `--float` also torch and accelerate.
"""

import argparse
import bz2
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
import numpy as np
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lowbit.cli import predictors
from lowbit.data import TextTokenizer
from lowbit.evals.encoding import first_token
from lowbit.evals.harness import HarnessModel
from lowbit.evals.numpy_predictor import predictor as numpy_predictor
from lowbit.evals.predictor import Predictor
from lowbit.evals.scoring import BatchScorer
from lowbit.evals.tasks import evaluate_task, read_items, task
from lowbit.formats import read
from lowbit.train.provenance import provenance

CONTEXTS = {
    "arc_easy": "Question: {{question}}\\nAnswer:",
    "boolq": "{{passage}}\\nQuestion: {{question}}?\\nAnswer:",
    "piqa": "Question: {{goal}}\\nAnswer:",
}
"""Prompts in the harness's own template language, to be independent of `lowbit.evals.tasks.rows`."""
EACH = [f"{name}=200" for name in CONTEXTS]


class Scored(NamedTuple):
    """Metrics by name, the log-likelihoods of every choice of every item, and what it took."""

    metrics: dict[str, float]
    log_likelihoods: list[list[float]]
    seconds: float


def by_lowbit(model: Predictor, folder: Path, name: str, items: int, batch: int) -> Scored:
    """Scores the first items of one task without the harness."""
    tokenizer = TextTokenizer.load(model.tokenizer_files, vocab_size=model.cfg.vocab_size)
    start = time.monotonic()
    result = evaluate_task(
        BatchScorer(model, batch),
        tokenizer,
        first_token(model.cfg, tokenizer),
        task(name),
        read_items(folder / f"{name}.jsonl", task(name).read, items),
    )
    metrics = {metric: found.value for metric, found in result.metrics.items()}
    return Scored(metrics, [list(choices) for choices in result.log_likelihoods], time.monotonic() - start)


def by_harness(model: LM, folder: Path, name: str, items: int) -> Scored:
    """Scores the first items of one task by the harness."""
    local = f"local_{name}"
    start = time.monotonic()
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[local],
        limit=items,
        num_fewshot=0,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    metrics = {
        key.removesuffix(",none"): value
        for key, value in found["results"][local].items()
        if key.endswith(",none") and "stderr" not in key
    }
    samples = sorted(found["samples"][local], key=lambda sample: sample["doc_id"])
    by_item = {sample["doc_id"]: [float(resp[0]) for resp in sample["filtered_resps"]] for sample in samples}
    return Scored(metrics, [by_item[index] for index in sorted(by_item)], time.monotonic() - start)


def write_tasks(data: Path, folder: Path, names: Sequence[str]) -> None:
    """Unpacks the data of the tasks into a folder and describes them there as the harness's YAML."""
    for name in names:
        rows = folder / f"{name}.jsonl"
        rows.write_bytes(bz2.decompress((data / f"{name}.jsonl.bz2").read_bytes()))
        metrics = "".join(
            f"  - metric: {metric}\n    aggregation: mean\n    higher_is_better: true\n"
            for metric in task(name).metrics
        )
        (folder / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {rows}\n"
            f'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{CONTEXTS[name]}"\n'
            f'doc_to_choice: "{{{{choices}}}}"\ndoc_to_target: label\nmetric_list:\n{metrics}',
            encoding="utf-8",
        )


def difference(one: Scored, other: Scored) -> dict[str, Any]:
    """Returns how far two ways of scoring the same items are apart."""
    pairs = list(zip(one.log_likelihoods, other.log_likelihoods, strict=True))
    gaps = np.array([abs(a - b) for first, second in pairs for a, b in zip(first, second, strict=True)])
    sizes = np.array([abs(a) for first, _ in pairs for a in first])
    return {
        "largest_log_likelihood_gap": float(gaps.max()),
        "largest_relative_gap": float((gaps / sizes).max()),
        "other_choice": sum(int(np.argmax(first) != np.argmax(second)) for first, second in pairs),
        "metrics": {name: one.metrics[name] - other.metrics[name] for name in one.metrics},
    }


def transformers_model(folder: str, batch: int) -> LM:
    """Returns the harness's own model of a Hugging Face folder, in float32 on the processor."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=batch)


def compare(
    source: str,
    label: str,
    model: Predictor,
    other: Callable[[], LM] | None,
    folder: Path,
    items: Mapping[str, int],
    batch: int,
) -> Iterator[dict[str, Any]]:
    """Yields one record a task, as soon as it is there."""
    ours = HarnessModel(model, batch)
    theirs = None if other is None else other()
    for name, count in items.items():
        tasks = by_lowbit(model, folder, name, count, batch)
        harness = by_harness(ours, folder, name, count)
        record = {
            "source": Path(source).name,
            "model": label,
            "backend": model.backend,
            "task": name,
            "items": count,
            "tasks": {"metrics": tasks.metrics, "seconds": tasks.seconds},
            "harness": {"metrics": harness.metrics, "seconds": harness.seconds},
            "tasks_against_harness": difference(tasks, harness),
        }
        if theirs is not None:
            reference = by_harness(theirs, folder, name, count)
            record["transformers"] = {"metrics": reference.metrics, "seconds": reference.seconds}
            record["harness_against_transformers"] = difference(harness, reference)
        yield record


def scored(output: Path) -> list[dict[str, Any]]:
    """Returns the records that the output has."""
    found: list[dict[str, Any]] = (
        json.loads(output.read_text(encoding="utf-8"))["comparisons"] if output.exists() else []
    )
    return found


def missing(output: Path, source: str, label: str, backend: str, items: Mapping[str, int]) -> dict[str, int]:
    """Returns those tasks, with how many items, that the output does not have of this model."""
    key = (Path(source).name, label, backend)
    done = {(each["task"], each["items"]) for each in scored(output) if _key(each) == key}
    return {name: count for name, count in items.items() if (name, count) not in done}


def _key(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["source"], record["model"], record["backend"]


def put(output: Path, record: dict[str, Any]) -> None:
    """Writes a record among those that the output has, in place of one of the same source, backend and task."""
    kept = [each for each in scored(output) if (*_key(each), each["task"]) != (*_key(record), record["task"])]
    output.write_text(json.dumps({"comparisons": [*kept, record]}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Compares, and writes JSON after each task of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK.jsonl.bz2")
    parser.add_argument(
        "--tasks", nargs="+", metavar="NAME=N", default=EACH, help="tasks, and how many first items of each"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--float", metavar="FOLDER", help="a float model that transformers loads too")
    parser.add_argument("--run", metavar="FOLDER", help="a run: its fake-quantized model")
    parser.add_argument(
        "--packed", metavar="FILE", help="a packed file: its decoded weights in jax, and the numpy runtime"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    items = {name: int(count) for name, _, count in (spec.partition("=") for spec in arguments.tasks)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        write_tasks(arguments.data, folder, list(items))
        models: list[tuple[str, str, Callable[[], Predictor], Callable[[], LM] | None]] = []
        if arguments.float:
            models.append(
                (
                    arguments.float,
                    "float",
                    lambda: predictors.from_source(arguments.float),
                    lambda: transformers_model(arguments.float, arguments.batch),
                )
            )
        if arguments.run:
            models.append((arguments.run, "run", lambda: predictors.from_source(arguments.run), None))
        if arguments.packed:
            models.append((arguments.packed, "packed", lambda: predictors.from_source(arguments.packed), None))
            models.append((arguments.packed, "packed", lambda: numpy_predictor(read(Path(arguments.packed))), None))
        origin = {**provenance(0), "command": shlex.join(sys.argv), "lm_eval_version": lm_eval.__version__}
        for source, label, make, other in models:
            model = make()
            left = missing(arguments.output, source, label, model.backend, items)
            if not left:
                continue
            for record in compare(source, label, model, other, folder, left, arguments.batch):
                put(arguments.output, {**record, "origin": origin})


if __name__ == "__main__":
    main()
