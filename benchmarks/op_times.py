"""Where the time of a compiled program goes: the events of a profiler trace, summed by what they are for.

The trace names instructions of the compiled program; the program's text says for each which operation of the source
it came from, by the path of modules and scopes. A fusion counts for its last operation.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.errors import DataError

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = .*?(?:[\])}]|\(\)) (?P<opcode>[a-z][\w\-]*)\(")
_OP_NAME = re.compile(r'op_name="(?P<path>[^"]*)"')
_TARGET = re.compile(r'custom_call_target="(?P<target>[^"]*)"')

CONTAINERS = ("while", "conditional", "call", "async-start", "async-done")
"""Their time is that of what they hold."""
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "nccl")
_MATMULS = ("gemm", "matmul", "nvjet", "cutlass", "cublas", "dot", "convolution")
_ATTENTION = re.compile(r"dot_product_attention|fmha|flash|sdpa|cudnn|/attn/(?!\w+_proj)")

_DEVICE_LANES = ("Stream", "XLA Ops")
"""Threads of a device on which its work stands once: streams of a GPU, operations of a TPU."""

ONE_BY_ONE = "--xla_gpu_enable_command_buffer="
"""An XLA flag that lets a GPU start kernels one by one: in a CUDA graph a trace cannot tell what they are for."""

KINDS = ("matmul", "matmul of head", "attention", "loss", "quantizer", "optimizer", "elementwise", "collective")
"""Every kind that `op_seconds` sums. Attention has its rotary positions; elementwise is what no other is: norms,
residuals, activations, casts, copies."""


class Instruction(NamedTuple):
    """One instruction of a compiled program: its opcode, the path of its operation, what a custom call calls."""

    opcode: str
    path: str
    target: str


UNKNOWN = Instruction("", "", "")
"""What stands for an event that is no instruction of the program, such as a copy of memory."""


class DeviceEvent(NamedTuple):
    """One thing that a device did.

    Attributes:
      name: of the instruction, or of the kernel where the trace does not say whose it is.
      kernel: as the device knows it.
      begin: seconds, from where the trace counts.
      seconds: how long it took.
    """

    name: str
    kernel: str
    begin: float
    seconds: float


def op_seconds(folder: Path, program: str) -> dict[str, float]:
    """Returns seconds on the devices by kind (`KINDS`), summed over devices and all runs of the program in a trace.

    Args:
      folder: what `jax.profiler.trace` was given.
      program: text of the compiled program, `compiled.as_text()`.

    Raises:
      DataError: no trace in the folder, or none of its events belongs to the program.
    """
    known = plain_names(instructions(program))
    seconds: dict[str, float] = defaultdict(float)
    for event in device_events(folder, known):
        kind = kind_of(event.name, known.get(plain(event.name), UNKNOWN))
        if kind is not None:
            seconds[kind] += event.seconds
    if not seconds:
        raise DataError(f"the trace in {folder} has no event of the program", "trace the program that was compiled")
    return {kind: seconds[kind] for kind in KINDS}


def device_events(folder: Path, known: Collection[str]) -> list[DeviceEvent]:
    """Returns what ran on devices while a trace was taken.

    Args:
      folder: what `jax.profiler.trace` was given.
      known: the `plain` names of the program's instructions, which alone count on a CPU.

    Raises:
      DataError: no trace in the folder.
    """
    traces = sorted(Path(folder).rglob("*.trace.json.gz"))
    if not traces:
        raise DataError(f"no *.trace.json.gz below {folder}", "trace the program with jax.profiler.trace first")
    found: list[DeviceEvent] = []
    for path in traces:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += _device_events(json.load(file)["traceEvents"], known)
    return found


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
    if opcode in CONTAINERS:
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


def _device_events(events: list[Mapping[str, Any]], known: Collection[str]) -> Iterator[DeviceEvent]:
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
        if (event["pid"], event["tid"]) in lanes or (not lanes and plain(name) in known):
            yield DeviceEvent(name, event["name"], event["ts"] * 1e-6, event["dur"] * 1e-6)


def _named(events: list[Mapping[str, Any]], kind: str) -> dict[tuple[int, int | None], str]:
    """The names of processes, or of threads, by (process, thread)."""
    return {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e.get("name") == kind}


def plain(name: str) -> str:
    """Returns a name as kernels have it: that of their instruction, with other characters between the words."""
    return re.sub(r"\W", "_", name)


def plain_names(instructions: Mapping[str, Instruction]) -> dict[str, Instruction]:
    """Returns instructions by their `plain` names."""
    return {plain(name): instruction for name, instruction in instructions.items()}
