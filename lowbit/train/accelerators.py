"""Devices that a run may be planned for: what their makers state, and what benchmarks measured on them."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lowbit.errors import ConfigError, nearest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
"""Where a checkout keeps what `benchmarks.train_throughput` wrote."""

Kind = Literal["float", "quantized", "distilled"]


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      name: as on the command line.
      matches: words in the name by which jax calls it.
      backend: "gpu" or "tpu".
      peak_flops: FLOP/s of dense bfloat16 products, as its maker states it.
      memory: bytes.
    """

    name: str
    matches: str
    backend: Literal["gpu", "tpu"]
    peak_flops: float
    memory: float


ACCELERATORS = {
    device.name: device
    for device in (
        Accelerator("h100", "H100", "gpu", 989e12, 80e9),
        Accelerator("h200", "H200", "gpu", 989e12, 141e9),
        Accelerator("b200", "B200", "gpu", 2250e12, 180e9),
        Accelerator("a100", "A100-SXM4-80GB", "gpu", 312e12, 80e9),
        Accelerator("a100-40g", "A100-SXM4-40GB", "gpu", 312e12, 40e9),
        Accelerator("l4", "L4", "gpu", 121e12, 24e9),
        Accelerator("tpu-v4", "TPU v4", "tpu", 275e12, 32 * 2**30),
        Accelerator("tpu-v5e", "TPU v5 lite", "tpu", 197e12, 16 * 2**30),
        Accelerator("tpu-v5p", "TPU v5p", "tpu", 459e12, 95 * 2**30),
        Accelerator("tpu-v6e", "TPU v6 lite", "tpu", 918e12, 32 * 2**30),
    )
}
"""By name. Peaks and memory are those of the makers' data sheets, without sparsity."""


def accelerator(name: str) -> Accelerator:
    """Returns a device by its name; raises ConfigError that names the nearest."""
    if name not in ACCELERATORS:
        raise ConfigError(f"unknown device {name!r}", nearest(name, ACCELERATORS))
    return ACCELERATORS[name]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How fast a device trained a model like the one in question.

    Attributes:
      flops: model FLOP/s a device.
      shape: of the model that was measured.
      variant: of the benchmark.
      devices: how many there were.
      file: of the benchmark's results.
    """

    flops: float
    shape: str
    variant: str
    devices: int
    file: str


def nearest_measurement(
    folder: Path, device: Accelerator, weights: int, kind: Kind, mesh: Mapping[str, int]
) -> Measurement | None:
    """Returns what was measured nearest to a run, None where the device has not been measured at all.

    Nearest is first of all the same mesh, else one device; then the model whose kernels hold about as many weights.

    Args:
      folder: with `train_throughput*.json` of the benchmark.
      device: the device.
      weights: in the kernels of the model's blocks (`llama.flops.kernel_weights`).
      kind: of the method.
      mesh: size of each axis.
    """
    own = re.compile(rf"\b{re.escape(device.matches)}\b")  # an L40 is no L4
    found = [case for case in _cases(folder) if own.search(case["device"]) and _kind(case) == kind]
    same = [case for case in found if case["mesh"] == dict(mesh)]
    usable = same or [case for case in found if math.prod(case["mesh"].values()) == 1]
    if not usable:
        return None
    # Of settings that were tried on one shape, the fastest is the one to use.
    best = min(
        usable, key=lambda case: (abs(math.log(case["kernel_weights"] / weights)), -case["model_tflops_per_device"])
    )
    devices = math.prod(best["mesh"].values())
    return Measurement(
        1e12 * best["model_tflops_per_device"], best["shape"], best["variant"], devices, Path(best["file"]).name
    )


def _cases(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("train_throughput*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        shared = {name: record[name] for name in ("device", "shape", "kernel_weights")}
        for case in record["cases"]:
            if "error" not in case:
                yield {**case, **shared, "file": str(path)}


def _kind(case: Mapping[str, Any]) -> Kind:
    method = case["variant"].partition(":")[0]
    if method.endswith("+distill"):
        return "distilled"
    return "float" if method == "float" else "quantized"
