"""The benchmark of the CPU kernels: every case once in turn, as often as asked; medians of it."""

import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.bench.child import Child
from lowbit.bench.products import FloatStream, Product, Reading, Stream
from lowbit.bench.random_model import random_model
from lowbit.formats import write
from lowbit.kernels import library
from lowbit.version import __version__

FLOAT_BITS = 32
PAUSE = 0.1
"""Seconds before each timing. Threads of the task before it, of whatever engine, still wait for work on processors that
this one needs: 1 bit on 2 threads, which comes behind llama.cpp, took twice as long without. Then the task runs once
untimed: processors that slept are slow for some milliseconds, as long as all copies of a small matrix take."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
      kernels: see `library.KERNELS`.
      threads: numbers of them.
      shapes: (k, n) of products.
      bits: widths of products and of decoded models.
      batches: tokens of products.
      group: inputs that share a scale in a second series at 2 bits, or None for no such series.
      models: of `random_model.SHAPES`, to be decoded with the most threads.
      embedding_bits: of those models.
      prompt: tokens of a prompt.
      tokens: that are decoded after it.
      repeats: of everything, in turns.
    """

    kernels: str
    threads: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...] = ((4096, 4096), (4096, 14_336))
    bits: tuple[float, ...] = (1, 1.58, 2, 3, 4)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    group: int | None = 64
    models: tuple[str, ...] = ("llama-587m", "smollm2-135m")
    embedding_bits: tuple[int, ...] = (8,)
    prompt: int = 512
    tokens: int = 32
    repeats: int = 5


@dataclass(frozen=True)
class Peer:
    """Another engine.

    Attributes:
      name: for the table.
      command: of a child that answers product and decode requests (benchmarks/llama_cpp_peer.py).
      products: its kinds of matrices.
      models: kind of its file and a function (folder, shape, embedding bits) -> path that writes one.
    """

    name: str
    command: Sequence[str]
    products: tuple[str, ...]
    models: dict[str, Callable[[Path, str, int], Path]]


def measure(plan: Plan, peer: Peer | None = None, progress: Progress = print) -> dict[str, Any]:
    """Returns the record of one run: facts of the machine, bandwidth, products, decoding.

    Raises:
      ConfigError: kernels that this processor lacks.
      KernelError: no compiled kernels, or a child that failed.
    """
    isa = library.choose(plan.kernels)
    record: dict[str, Any] = facts() | {"kernels": isa, "plan": asdict(plan)}
    if peer is not None:
        with Child(peer.command) as child:
            record["peer"] = {"name": peer.name} | child.ask(version=True)
    record["products"] = []
    for k, n in plan.shapes:
        for batch in plan.batches:
            progress(f"{n} x {k}, batch {batch}")
            record["products"] += _products(plan, isa, peer, k, n, batch)
    record["decoding"] = []
    for shape in plan.models:
        for embedding_bits in plan.embedding_bits:
            progress(f"decoding {shape}, embedding of {embedding_bits} bits")
            record["decoding"] += _decoding(plan, peer, shape, embedding_bits)
    return record


def facts() -> dict[str, Any]:
    """Returns what a reader needs to know about where numbers come from."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": _commit(),
        "lowbit_version": __version__,
        "cpu": _cpu_name(),
        "cores": library.default_threads(),
        "load": os.getloadavg()[0],
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
    }


def _products(plan: Plan, isa: str, peer: Peer | None, k: int, n: int, batch: int) -> list[dict[str, Any]]:
    streams: dict[tuple[str, Product], Stream | FloatStream | Reading] = {}
    for bits in plan.bits:
        streams["lowbit", Product(k, n, bits, batch, 1)] = Stream(Product(k, n, bits, batch, 1), isa)
    if plan.group is not None and 2 in plan.bits:
        grouped = Product(k, n, 2, batch, 1, k // plan.group)
        streams["lowbit", grouped] = Stream(grouped, isa)
    streams["numpy", Product(k, n, FLOAT_BITS, batch, 1)] = FloatStream(Product(k, n, FLOAT_BITS, batch, 1))
    if batch == 1:
        streams["reading", Product(k, n, 8, batch, 1)] = Reading(isa)
    rows = []
    for threads in plan.threads:
        tasks: dict[Any, Callable[[], float]] = {}
        for (engine, case), stream in streams.items():
            if not isinstance(stream, FloatStream):
                stream.set_threads(threads)
            elif threads != max(plan.threads):
                continue  # BLAS takes its number when it is loaded
            tasks[engine, case] = stream.seconds
        if peer is None:
            timed = _in_turns(tasks, plan.repeats)
        else:
            with _peers(peer, k, n, batch, threads) as asked:
                timed = _in_turns(tasks | asked, plan.repeats)
        for (engine, case), seconds in timed.items():
            row: dict[str, Any] = {"engine": engine, "k": k, "n": n, "batch": batch, "threads": threads}
            if isinstance(case, Product):
                row |= {"bits": case.bits, "groups": case.groups, "bytes": streams[engine, case].nbytes}
            else:
                row |= {"kind": case}
            rows.append(row | _summary(seconds))
    return rows


class _peers:
    """Children of a peer, one a kind of matrix: each keeps its own copies."""

    def __init__(self, peer: Peer, k: int, n: int, batch: int, threads: int):
        self._children = {kind: Child(peer.command) for kind in peer.products}
        self._name = peer.name
        self._request = {"k": k, "n": n, "batch": batch, "threads": threads, "total_bytes": 160 << 20}

    def __enter__(self) -> dict[Any, Callable[[], float]]:
        def task(kind: str, child: Child) -> Callable[[], float]:
            return lambda: float(child.ask(product=kind, **self._request)["seconds"])

        return {(self._name, kind): task(kind, child) for kind, child in self._children.items()}

    def __exit__(self, *exception: Any) -> None:
        for child in self._children.values():
            child.__exit__(None, None, None)


def _decoding(plan: Plan, peer: Peer | None, shape: str, embedding_bits: int) -> list[dict[str, Any]]:
    threads = max(plan.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands: dict[tuple[str, str], tuple[Sequence[str], Path]] = {}
        for bits in plan.bits:
            path = folder / f"{shape}-{bits:g}.lowbit"
            write(path, random_model(shape, bits, embedding_bits))
            commands["lowbit", f"{bits:g}"] = [sys.executable, "-m", "lowbit.bench.decode_child"], path
        if peer is not None:
            for kind, make in peer.models.items():
                commands[peer.name, kind] = peer.command, make(folder, shape, embedding_bits)
        children = {key: Child(command) for key, (command, _) in commands.items()}
        answers: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in commands}
        for _ in range(plan.repeats):
            for key, child in children.items():
                request = {"prompt": plan.prompt, "tokens": plan.tokens, "threads": threads}
                answers[key].append(child.ask(decode=str(commands[key][1]), **request))
        for child in children.values():
            child.__exit__(None, None, None)
        rows = []
        for (engine, kind), runs in answers.items():
            tokens = [statistics.median(run["token_seconds"]) for run in runs]
            row = {"engine": engine, "kind": kind, "model": shape, "embedding_bits": embedding_bits}
            row |= {"threads": threads, "prompt": plan.prompt, "file_bytes": commands[engine, kind][1].stat().st_size}
            row |= {"peak_bytes": runs[-1]["peak_bytes"], "token": _summary(tokens)}
            rows.append(row | {"prompt_seconds": _summary([run["prompt_seconds"] for run in runs])})
        return rows


def _in_turns(tasks: dict[Any, Callable[[], float]], repeats: int) -> dict[Any, list[float]]:
    """Runs all tasks in turn, each once untimed before each timing: a slow minute of the machine meets all of them."""
    times: dict[Any, list[float]] = {key: [] for key in tasks}
    for _ in range(repeats):
        for key, task in tasks.items():
            time.sleep(PAUSE)
            task()
            times[key].append(task())
    return times


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"seconds": statistics.median(seconds), "best": min(seconds), "worst": max(seconds)}


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
