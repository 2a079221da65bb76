"""The benchmark of the GPU's kernel: every case once in turn, as often as asked; medians of it."""

import contextlib
import functools
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit import cuda
from lowbit.bench.child import Child
from lowbit.bench.cpu import Peer, Progress, facts
from lowbit.bench.gpu_products import BFLOAT16_BITS, Copy, GpuProduct, Matrices
from lowbit.bench.gpu_reading import Reading
from lowbit.bench.random_model import SHAPES, random_model
from lowbit.errors import KernelError
from lowbit.generation import Generator
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.pallas import kernel_runs_here
from lowbit.tree import unflatten

COMPILERS = 8
"""Programs that are compiled at a time."""
NEXT_TO_NOTHING = 8192
"""Bytes that take as long to read as a kernel takes to start."""
READING = "reading"
"""The engine of rows that say what reading as many bytes takes."""


@dataclass(frozen=True)
class GpuPlan:
    """What is measured.

    Attributes:
      shapes: (k, n) of products.
      bits: widths of products.
      batches: tokens of products.
      group: inputs that share a scale in a second series at 2 bits.
      models: of `random_model.SHAPES`, to be decoded at `decode_bits` and in bfloat16.
      decode_bits: widths.
      decode_batches: sequences at a time.
      prompt: tokens of each prompt.
      tokens: that are decoded after it.
      repeats: of everything, in turns.
    """

    shapes: tuple[tuple[int, int], ...] = ((8192, 8192), (4096, 14_336), (14_336, 4096), (8192, 28_672))
    bits: tuple[float, ...] = (1, 1.58, 2, 3, 4)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    group: int = 128
    models: tuple[str, ...] = ("llama-1b",)
    decode_bits: tuple[float, ...] = (2, 4)
    decode_batches: tuple[int, ...] = (1, 16)
    prompt: int = 64
    tokens: int = 128
    repeats: int = 5


def measure_gpu(plan: GpuPlan, peer: Peer | None = None, progress: Progress = print) -> dict[str, Any]:
    """Returns the record of one run: facts of the machine, bandwidth, products, decoding.

    Raises:
      KernelError: no GPU that the kernel is made for, or a child that failed.
    """
    if not kernel_runs_here():
        raise KernelError(
            f"the default device, {jax.devices()[0].device_kind}, is no GPU that the kernel is made for",
            "run it on an NVIDIA GPU of compute capability 9.0 to below 12.0, with jax[cuda13]",
        )
    return measure_anywhere(plan, peer, progress)


def measure_anywhere(plan: GpuPlan, peer: Peer | None, progress: Progress) -> dict[str, Any]:
    """The same without a look at the device: on others the portable products are timed."""
    device = jax.devices()[0]
    record: dict[str, Any] = facts() | {"device": device.device_kind, "jax_version": jax.__version__}
    record["plan"] = asdict(plan)
    record["cuda"] = cuda.available()
    memory, smallest = Copy(), Reading(NEXT_TO_NOTHING)
    record["copy"] = {"bytes": memory.nbytes} | _summary(_in_turns({0: memory.seconds}, plan.repeats)[0])
    record["launch"] = _summary(_in_turns({0: smallest.seconds}, plan.repeats)[0])
    record["products"] = []
    with contextlib.nullcontext() if peer is None else Child(peer.command) as child:
        if peer is not None and child is not None:
            record["peer"] = {"name": peer.name} | child.ask(version=True)
        for k, n in plan.shapes:
            record["products"] += _products(plan, peer, child, k, n, progress)
    record["decoding"] = []
    for shape in plan.models:
        record["decoding"] += _decoding(plan, shape, progress)
    return record


def _products(
    plan: GpuPlan, peer: Peer | None, child: Child | None, k: int, n: int, progress: Progress
) -> list[dict[str, Any]]:
    cases = [GpuProduct(k, n, bits) for bits in plan.bits]
    if 2 in plan.bits:
        cases += [GpuProduct(k, n, 2, group=plan.group), GpuProduct(k, n, 2, activations="int8")]
    cases.append(GpuProduct(k, n, BFLOAT16_BITS))
    matrices = {case: Matrices(case) for case in cases}
    rows = []
    for batch in plan.batches:
        progress(f"{n} x {k}, batch {batch}")
        tasks: dict[Any, Callable[[], float]] = {case: matrices[case].program(batch).seconds for case in cases}
        if batch == 1:
            readings = {nbytes: Reading(nbytes) for nbytes in sorted({matrices[case].nbytes for case in cases})}
            tasks |= {(READING, nbytes): reading.seconds for nbytes, reading in readings.items()}
        if peer is not None and child is not None:
            ask = _asked_one_by_one(child)
            for kind in peer.products:
                request = {"product": kind, "k": k, "n": n, "batch": batch}
                if child.ask(**request)["seconds"] is not None:  # it may have run out of time for its own search
                    tasks[kind] = functools.partial(ask, **request)
        for key, seconds in _in_turns(tasks, plan.repeats).items():
            row: dict[str, Any] = {"k": k, "n": n, "batch": batch}
            if isinstance(key, GpuProduct):
                row |= {"engine": "xla" if key.bits == BFLOAT16_BITS else "lowbit", "bits": key.bits}
                row |= {"group": key.group, "activations": key.activations, "bytes": matrices[key].nbytes}
            elif isinstance(key, tuple):
                row |= {"engine": READING, "kind": "", "bytes": key[1]}
            else:
                row |= {"engine": peer.name if peer else "", "kind": key}
            rows.append(row | _summary(seconds))
    return rows


def _asked_one_by_one(child: Child) -> Callable[..., float]:
    """Products of another engine, whose process takes one request at a time."""
    lock = threading.Lock()

    def ask(**request: Any) -> float:
        with lock:
            return float(child.ask(**request)["seconds"])

    return ask


def _decoding(plan: GpuPlan, shape: str, progress: Progress) -> list[dict[str, Any]]:
    rows = []
    generators: dict[str, Callable[[], Generator]] = {
        f"{bits:g} bits": functools.partial(
            Generator.from_packed, random_model(shape, bits, 8), dtype=jnp.bfloat16, cache="bfloat16"
        )
        for bits in plan.decode_bits
    }
    generators["bfloat16"] = functools.partial(_float_generator, shape)
    made = {kind: make() for kind, make in generators.items()}
    for batch in plan.decode_batches:
        progress(f"decoding {shape}, batch {batch}")
        tasks: dict[Any, Callable[[], float]] = {
            kind: functools.partial(_token_seconds, model, plan, batch) for kind, model in made.items()
        }
        for kind, seconds in _in_turns(tasks, plan.repeats).items():
            row = {"model": shape, "kind": kind, "batch": batch, "weight_bytes": made[kind].weights.nbytes}
            rows.append(row | _summary(seconds))
    return rows


def _float_generator(shape: str) -> Generator:
    """A model of random bfloat16 weights, made on the device."""
    cfg = LlamaConfig.from_hf(SHAPES[shape])
    keys = jax.random.split(jax.random.key(0), len(param_shapes(cfg)))
    flat = {
        path: 0.02 * jax.random.normal(key, size, jnp.bfloat16)
        for key, (path, size) in zip(keys, param_shapes(cfg).items(), strict=True)
    }
    return Generator.from_params(cfg, unflatten(flat), dtype=jnp.bfloat16, cache="bfloat16")


def _token_seconds(model: Generator, plan: GpuPlan, batch: int) -> float:
    """Time of one step of all sequences: what more tokens take longer than one."""
    ids = np.random.default_rng(0).integers(0, model.decoder.cfg.vocab_size, (batch, plan.prompt)).tolist()
    times = []
    for tokens in (1, 1 + plan.tokens):
        began = time.perf_counter()
        model.generate(ids, tokens, stop_tokens=())
        times.append(time.perf_counter() - began)
    return (times[1] - times[0]) / plan.tokens


def _in_turns(tasks: dict[Any, Callable[[], float]], repeats: int) -> dict[Any, list[float]]:
    """Runs each task once to compile, several at a time; then all in turn, so that what is slow meets all of them."""
    with ThreadPoolExecutor(COMPILERS) as pool:
        list(pool.map(lambda task: task(), tasks.values()))
    times: dict[Any, list[float]] = {key: [] for key in tasks}
    for _ in range(repeats):
        for key, task in tasks.items():
            times[key].append(task())
    return times


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"seconds": statistics.median(seconds), "best": min(seconds), "worst": max(seconds)}
