"""Kills a small training many times with SIGKILL, resumes it each time, and compares it with an undisturbed run.

    python scripts/kill_many_times.py --kills 20 --output killed.json

The moments are drawn from a seed, three kinds in turn: while the process starts (Python, compilation, reading the
checkpoint), between steps, and while a checkpoint is being written. In the end every array of the last checkpoint
(parameters, scales, optimizer state), every line of the logs but for times, and the result must be equal bit for bit.
Exit status 1 if they are not. For GPUs set XLA_FLAGS=--xla_gpu_deterministic_ops=true.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("start-up", "steps", "save")
TIMES = ("tokens_per_s", "elapsed", "seconds", "date")
"""What two equal runs may differ in."""
PARTIAL = "*.orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Plan:
    """One moment to kill at: so many seconds after the start, after a logged step, or after a save of it begins."""

    kind: str
    step: int
    seconds: float


def plans(kills: int, steps: int, start_up: float, seed: int) -> list[Plan]:
    """Returns the moments in order; `start_up` is how many seconds a process takes to its first step."""
    rng = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    later = sorted(rng.sample(range(1, steps), sum(kind != "start-up" for kind in kinds)))
    return [
        Plan("start-up", 0, rng.uniform(0, start_up))
        if kind == "start-up"
        else Plan(kind, later.pop(0), rng.uniform(0, 0.1 if kind == "steps" else 0.03))
        for kind in kinds
    ]


class Training:
    """One run folder and the command that trains in it."""

    def __init__(self, folder: Path, steps: int, save_every: int):
        self.folder = folder
        quickstart = ROOT / "assets" / "quickstart"
        settings = {
            "run_folder": folder,
            "model.tokenizer": quickstart / "model",
            "data.train": quickstart / "text" / "valid.jsonl",
            "data.valid": quickstart / "text" / "valid.jsonl",
            "train.tokens": steps * 256,
            "evaluation.every_steps": 2 * save_every,
            "checkpoint.every_steps": save_every,
            "log.progress": "false",
            "log.recorder_every_steps": 6,
        }
        self._command = [sys.executable, "-m", "lowbit", "train", f"{ROOT}/configs/qat_quickstart.py:bits=2,smoke"]
        self._command += [f"--config.{key}={value}" for key, value in settings.items()]

    def start(self) -> subprocess.Popen[str]:
        """Starts training, from the newest checkpoint if there is a run."""
        resume = ["--resume"] if (self.folder / "config.json").is_file() else []
        return subprocess.Popen(
            [*self._command, *resume], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> float:
        """Trains to the end; returns the seconds it took."""
        began = time.monotonic()
        process = self.start()
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"training in {self.folder} failed:\n{said}")
        return time.monotonic() - began

    def start_up(self) -> float:
        """Trains until a first step is logged; returns the seconds to it."""
        began = time.monotonic()
        process = self.start()
        while process.poll() is None and not self.logged():
            time.sleep(0.01)
        seconds = time.monotonic() - began
        process.kill()
        process.communicate()
        return seconds

    def checkpoints(self) -> list[int]:
        """Returns the steps of the finished checkpoints."""
        return sorted(int(path.name) for path in (self.folder / "checkpoints").glob("*") if path.name.isdecimal())

    def log_file(self) -> int:
        """Returns which file the metrics are written to: its inode, 0 for none."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.stat().st_ino if metrics.is_file() else 0

    def being_saved(self) -> int:
        """Returns the step of the checkpoint that is being written, 0 for none."""
        return max((int(name.split(".")[0]) for name in self.partial()), default=0)

    def partial(self) -> list[str]:
        """Returns the names of checkpoints that are being written, or were when the process died."""
        return sorted(path.name for path in (self.folder / "checkpoints").glob(PARTIAL))

    def logged(self) -> int:
        """Returns the last step in the metrics."""
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        return int(json.loads(whole[-1])["step"]) if whole else 0

    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the lines of metrics, evaluations and whatever else is logged, without times, by file."""
        return {
            path.name: [
                {key: value for key, value in json.loads(line).items() if key not in TIMES}
                for line in path.read_text().splitlines()
            ]
            for path in sorted(self.folder.glob("*.jsonl"))
        }

    def result(self) -> dict[str, Any]:
        """Returns the result, without times and the folder's name."""
        record = json.loads((self.folder / "result.json").read_text())
        return {key: value for key, value in record.items() if key not in (*TIMES, "run_folder")}


def kill(training: Training, plan: Plan) -> dict[str, Any]:
    """Starts the training, kills it at the planned moment, and returns what had been reached."""
    found, log = training.checkpoints(), training.log_file()
    began = time.monotonic()
    process = training.start()
    while process.poll() is None:
        if plan.kind == "start-up" and (time.monotonic() - began > plan.seconds or training.checkpoints() != found):
            break
        # What lies there before the log is opened anew was left by the process killed before.
        if plan.kind != "start-up" and training.log_file() != log:
            reached = training.logged() if plan.kind == "steps" else training.being_saved()
            if reached >= plan.step:
                time.sleep(plan.seconds)
                break
        time.sleep(0.001)
    process.kill()
    seconds = time.monotonic() - began
    _, said = process.communicate()
    if process.returncode != -9:
        raise SystemExit(f"the training ended before it could be killed, at {plan}:\n{said}")
    return {
        **dataclasses.asdict(plan),
        "killed_after_seconds": round(seconds, 3),
        "resumed_from": max(found, default=0),
        "logged_step": training.logged(),
        "newest_checkpoint": max(training.checkpoints(), default=0),
        "half_written": training.partial(),
    }


def arrays(folder: Path) -> dict[str, Any]:
    """Returns every array of the newest checkpoint of a run, by path."""
    import jax
    import numpy as np

    from lowbit.train import prepare
    from lowbit.train.checkpoints import opened
    from lowbit.train.run_folder import RunFolder

    run = RunFolder(folder)
    experiment = prepare(run.read()[0])
    with opened(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(experiment.restorable_state(), experiment.train.fingerprint())
    if restored is None:
        raise SystemExit(f"{folder} holds no checkpoint")
    leaves = jax.tree_util.tree_leaves_with_path(restored[0])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def compare(killed: Training, undisturbed: Training) -> dict[str, Any]:
    """Returns what of two runs is equal, and the arrays that differ in a bit."""
    left, right = arrays(killed.folder), arrays(undisturbed.folder)
    unlike = [
        path
        for path in sorted(left.keys() | right.keys())
        if path not in left
        or path not in right
        or left[path].dtype != right[path].dtype
        or left[path].tobytes() != right[path].tobytes()
    ]
    same = {
        "arrays": len(left),
        "values": sum(int(array.size) for array in left.values()),
        "unlike_arrays": unlike,
        "equal_logs": killed.logs() == undisturbed.logs(),
        "logged_lines": {name: len(lines) for name, lines in undisturbed.logs().items()},
        "equal_results": killed.result() == undisturbed.result(),
        "nothing_half_written": killed.partial() == [],
    }
    return same | {"equal": not unlike and all(value for value in same.values() if isinstance(value, bool))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and writes its record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many times (default: 20)")
    parser.add_argument("--steps", type=int, default=120, help="of the training (default: 120)")
    parser.add_argument("--save-every", type=int, default=4, help="steps between checkpoints (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--output", type=Path, help="also write the record as JSON")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        # Compiled once for all processes, so that a start-up is short; deleted with the runs.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        undisturbed = Training(Path(scratch) / "undisturbed", options.steps, options.save_every)
        killed = Training(Path(scratch) / "killed", options.steps, options.save_every)
        whole = undisturbed.finish()
        start_up = Training(Path(scratch) / "start-up", options.steps, options.save_every).start_up()
        moments = []
        for number, plan in enumerate(plans(options.kills, options.steps, start_up, options.seed), start=1):
            moments.append(kill(killed, plan))
            print(f"kill {number}: {json.dumps(moments[-1])}", file=sys.stderr)
        killed.finish()
        outcome = compare(killed, undisturbed)
    from lowbit.train.provenance import provenance

    record = {
        **provenance(options.seed),
        "kills": options.kills,
        "steps": options.steps,
        "save_every": options.save_every,
        "undisturbed_seconds": round(whole, 1),
        **outcome,
        "moments": moments,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    return 0 if outcome["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
