"""`estimate`: what a run will cost, before anything is launched."""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from lowbit import config as configs
from lowbit.cli.tables import fields
from lowbit.cli.usage import UsageError
from lowbit.config import ConfigDict
from lowbit.report.table import format_bytes, format_seconds
from lowbit.train import sharding
from lowbit.train.accelerators import RESULTS, Accelerator, accelerator
from lowbit.train.estimate import Estimate, estimate

DOES_NOT_FIT = 1
USABLE = 0.92
"""Share of a device's memory that a program gets: the rest is the runtime's, and lost between arrays."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the estimate; 1 if the run does not fit into the devices' memory."""
    _check_speed(arguments)
    config = configs.load(arguments.config, arguments.overrides)
    device = accelerator(arguments.device)
    mesh = _mesh(config, arguments)
    found = estimate(
        config,
        device,
        mesh,
        results=RESULTS if arguments.results is None else Path(arguments.results).expanduser(),
        share=arguments.share,
        tokens_per_s=arguments.tokens_per_s,
        compiling=arguments.compile,
    )
    fits = found.memory.peak <= USABLE * device.memory
    if arguments.json:
        print(json.dumps(_record(found, device, fits), indent=2, allow_nan=False))
    else:
        _print(found, config, device, fits)
    return 0 if fits else DOES_NOT_FIT


def _check_speed(arguments: argparse.Namespace) -> None:
    share, speed = arguments.share, arguments.tokens_per_s
    if share is not None and speed is not None:
        raise UsageError("--share and --tokens-per-s both say how fast it is", "give one of them")
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"--share {share:g}", "give a number above 0, up to 1")
    if speed is not None and not 0 < speed < math.inf:
        raise UsageError(f"--tokens-per-s {speed:g}", "give a finite number above 0")
    if arguments.results is not None and not Path(arguments.results).expanduser().is_dir():
        raise UsageError(f"there is no folder {arguments.results}", "give the one of train_throughput*.json")


def _mesh(config: ConfigDict, arguments: argparse.Namespace) -> dict[str, int]:
    """The size of each axis: of --mesh, or of the config on --devices."""
    sizes = config.mesh.to_dict()
    if arguments.mesh is not None:
        parts = arguments.mesh.split(",")
        if len(parts) != len(sharding.AXES) or not all(part.isdecimal() for part in parts):
            raise UsageError(f"--mesh {arguments.mesh} is no mesh", "give three sizes, data,fsdp,tensor: --mesh 4,2,1")
        sizes = dict(zip(sharding.AXES, map(int, parts), strict=True))
    given = math.prod(size for size in sizes.values() if size != -1)
    count = given if arguments.devices is None else arguments.devices
    return dict(zip(sharding.AXES, sharding.mesh_shape(sizes, count), strict=True))


def _print(found: Estimate, config: ConfigDict, device: Accelerator, fits: bool) -> None:
    memory, train = found.memory, config.train
    shape = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    _section(
        "run",
        ("devices", f"{found.devices} x {device.name} ({shape})"),
        ("method", _method(config)),
        ("parameters", f"{found.parameters:,}, of these quantized {found.quantized:,}"),
        ("batch", f"{train.batch_size:,} x {train.sequence_length:,} tokens{parts}"),
        ("steps", f"{found.steps:,}, {found.tokens:,} tokens"),
    )
    kept = (("masters", memory.masters), ("scales", memory.scales), ("optimizer", memory.optimizer))
    _section(
        "bytes a device",
        *((name, _bytes(size)) for name, size in (*kept, ("teacher", memory.teacher)) if size),
        ("gradients", _bytes(memory.gradients)),
        ("activations", f"{_bytes(memory.activations)} (remat {config.model.remat})"),
        ("layer at work", _bytes(memory.layer)),
        ("loss", f"{_bytes(memory.loss)} ({train.loss_chunks} chunks)"),
        ("peak", f"{_bytes(memory.peak)} of {_bytes(int(device.memory))}: {_verdict(fits)}"),
        *([] if found.compiled is None else [("compiled here", _bytes(found.compiled))]),
    )
    _section("speed", *_speed(found, device))
    _section(
        "files",
        ("checkpoint", f"{_bytes(found.checkpoint_bytes)}, of which {config.checkpoint.keep} are kept"),
        ("packed file", _bytes(found.packed_bytes)),
    )


def _section(name: str, *pairs: tuple[str, str]) -> None:
    print(f"{name}\n{fields([(f'  {key}', value) for key, value in pairs])}")


def _method(config: ConfigDict) -> str:
    quant = config.quant
    widths = quant.layer_bits or (quant.bits,)
    method = quant.method if quant.method == "float" else f"{quant.method}, {', '.join(f'{b:g}' for b in widths)} bits"
    method += ", codes fixed" if quant.codes == "fixed" else ""
    return method + (f", distilled ({config.distill.weight:g})" if config.distill.weight else "")


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else format_bytes(count)


def _verdict(fits: bool) -> str:
    return "fits" if fits else "DOES NOT FIT"


def _speed(found: Estimate, device: Accelerator) -> list[tuple[str, str]]:
    lines = [
        ("FLOPs a token", f"{found.flops_per_token / 1e9:,.3f} G"),
        ("FLOPs in all", f"{found.flops_per_token * found.tokens:.3g}"),
    ]
    if found.tokens_per_s is None or found.hours is None:
        return [*lines, ("tokens/s", f"unknown: {device.name} has not been measured; give --share or --tokens-per-s")]
    share = found.tokens_per_s * found.flops_per_token / found.devices / device.peak_flops
    source = ""
    if found.measurement is not None:
        measured = found.measurement
        scaled = "" if measured.devices == found.devices else f", times {found.devices // measured.devices} devices"
        source = f", as measured for {measured.shape}, variant {measured.variant}{scaled} ({measured.file})"
    return [
        *lines,
        ("tokens/s", f"{found.tokens_per_s:,.0f}, {share:.0%} of the peak{source}"),
        ("time", f"{format_seconds(3600 * found.hours)} of steps, {found.hours * found.devices:,.2f} device-hours"),
    ]


def _record(found: Estimate, device: Accelerator, fits: bool) -> dict[str, Any]:
    derived = {"state": found.memory.state, "peak": found.memory.peak, "device": device.memory, "fits": fits}
    hours = found.hours
    return {
        **dataclasses.asdict(found),
        "device": device.name,
        "devices": found.devices,
        "memory": dataclasses.asdict(found.memory) | derived,
        "flops": found.flops_per_token * found.tokens,
        "hours": hours,
        "device_hours": None if hours is None else hours * found.devices,
    }
