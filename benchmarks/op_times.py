"""Where the time of a compiled program goes: the events of a profiler trace, summed by what they are for.

The trace names instructions of the compiled program; the program's text says for each which operation of the source
it came from, by the path of modules and scopes. A fusion counts for its last operation.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.errors import DataError

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = .*?(?:[\])}]|\(\)) (?P<opcode>[a-z][\w\-]*)\(")
_OP_NAME = re.compile(r'op_name="(?P<path>[^"]*)"')
_TARGET = re.compile(r'custom_call_target="(?P<target>[^"]*)"')

_CONTAINERS = ("while", "conditional", "call", "async-start", "async-done")
"""Their time is that of what they hold."""
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "nccl")
_MATMULS = ("gemm", "matmul", "nvjet", "cutlass", "cublas", "dot", "convolution")
_ATTENTION = re.compile(r"dot_product_attention|fmha|flash|sdpa|cudnn|/attn/(?!\w+_proj)")

_DEVICE_LANES = ("Stream", "XLA Ops")
"""Threads of a device on which its work stands once: streams of a GPU, operations of a TPU."""

KINDS = ("matmul", "matmul of head", "attention", "loss", "quantizer", "optimizer", "elementwise", "collective")
"""Every kind that `op_seconds` sums. Attention has its rotary positions; elementwise is what no other is: norms,
residuals, activations, casts, copies."""


class Instruction(NamedTuple):
    """One instruction of a compiled program: its opcode, the path of its operation, what a custom call calls."""

    opcode: str
    path: str
    target: str


_UNKNOWN = Instruction("", "", "")


def op_seconds(folder: Path, program: str) -> dict[str, float]:
    """Returns seconds on the devices by kind (`KINDS`), summed over devices and all runs of the program in a trace.

    Args:
      folder: what `jax.profiler.trace` was given.
      program: text of the compiled program, `compiled.as_text()`.

    Raises:
      DataError: no trace in the folder, or none of its events belongs to the program.
    """
    traces = sorted(Path(folder).rglob("*.trace.json.gz"))
    if not traces:
        raise DataError(f"no *.trace.json.gz below {folder}", "trace the program with jax.profiler.trace first")
    known = {_plain(name): instruction for name, instruction in instructions(program).items()}
    seconds: dict[str, float] = defaultdict(float)
    for path in traces:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        for name, event_seconds in _device_events(events, known):
            kind = kind_of(name, known.get(_plain(name), _UNKNOWN))
            if kind is not None:
                seconds[kind] += event_seconds
    if not seconds:
        raise DataError(f"the trace in {folder} has no event of the program", "trace the program that was compiled")
    return {kind: seconds[kind] for kind in KINDS}


def instructions(program: str) -> dict[str, Instruction]:
    """Returns every instruction of a compiled program's text, by name."""
    found = {}
    for line in program.splitlines():
        match = _INSTRUCTION.match(line)
        if match:
            path, target = _OP_NAME.search(line), _TARGET.search(line)
            found[match["name"]] = Instruction(
                match["opcode"], path["path"] if path else "", target["target"] if target else ""
            )
    return found


def kind_of(name: str, instruction: Instruction) -> str | None:
    """Returns the kind of an instruction, None for one whose time is that of others inside of it."""
    opcode, path, target = instruction
    if opcode in _CONTAINERS:
        return None
    words = f"{name} {opcode} {target}".lower()
    if any(word in words for word in _COLLECTIVES):
        return "collective"
    if _ATTENTION.search(f"{words} {path}".lower()):
        return "attention"
    in_loss = "loss" in re.split(r"[/()]", path)
    if any(word in words for word in _MATMULS) or path.endswith("dot_general"):
        return "matmul of head" if in_loss else "matmul"
    if in_loss:
        return "loss"
    scopes = re.split(r"[/()]", path)
    if "fake_quant" in scopes:
        return "quantizer"
    return "optimizer" if "optimizer" in scopes else "elementwise"


def _device_events(events: list[Mapping[str, Any]], known: Mapping[str, Instruction]) -> Iterator[tuple[str, float]]:
    """Yields (instruction or kernel, seconds) of what ran on devices."""
    names = {kind: _named(events, kind) for kind in ("process_name", "thread_name")}
    devices = {pid for (pid, _), name in names["process_name"].items() if name.startswith("/device:")}
    lanes = {
        lane for lane, name in names["thread_name"].items() if lane[0] in devices and name.startswith(_DEVICE_LANES)
    }
    for event in events:
        if event.get("ph") != "X":
            continue
        name = event.get("args", {}).get("hlo_op", event["name"])
        # A CPU's program runs on threads of the host, among much else; there only its own instructions count.
        if (event["pid"], event["tid"]) in lanes or (not lanes and _plain(name) in known):
            yield name, event["dur"] * 1e-6


def _named(events: list[Mapping[str, Any]], kind: str) -> dict[tuple[int, int | None], str]:
    """The names of processes, or of threads, by (process, thread)."""
    return {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e.get("name") == kind}


def _plain(name: str) -> str:
    """Kernels are named as their instructions, with other characters between the words."""
    return re.sub(r"\W", "_", name)
