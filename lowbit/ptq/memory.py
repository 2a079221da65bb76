"""What a quantization needs of the host's memory, from sizes alone, and whether the host has it."""

import dataclasses
import math
from pathlib import Path

from lowbit.errors import MemoryShortError
from lowbit.evals.jax_predictor import LOGITS_AT_ONCE
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models.layerwise import outside_paths
from lowbit.ptq.calibration import BATCH_TOKENS
from lowbit.ptq.model import Plan
from lowbit.report.table import format_bytes

FLOAT_BYTES, STORED_BYTES = 4, 2

PROGRAM, PROGRAM_BESIDE_DEVICE = 600_000_000, 3_000_000_000
"""Interpreter, libraries and compiled programs: as measured on a CPU, and allowed for the libraries of a GPU."""

LAYER_COPIES = 5
"""Of a layer in float32: as read, on the device, folded, its masters, and what they round to."""

LEARNING_COPIES = 5
"""Besides, where a layer's kernels learn together: gradients, two moments, rounded kernels, and an update."""

SQUARES = 5
"""Of k x k, while one kernel is rounded from second moments: sums, damped, turned round, factor, inverse."""

KERNELS = 5
"""Of k x n at the same time: weights, masters, rounded ones, and two that the loop carries."""


@dataclasses.dataclass(frozen=True)
class HostMemory:
    """Bytes of the host.

    Attributes:
      activations: hidden states of all calibration tokens, before and behind a layer.
      layer: copies of the layer at work.
      work: what running it and rounding its largest kernel take.
      result: packed codes, or float32 masters of a run folder and their copy in the checkpoint's writer.
      evaluation: the whole float32 model, its copy where it runs and what a batch takes; 0 where nobody asks.
      program: what the process holds whatever the model.
    """

    activations: int
    layer: int
    work: int
    result: int
    evaluation: int
    program: int

    @property
    def peak(self) -> int:
        """The most at one time: while layers are quantized, while they are put together, or while they are tried."""
        quantizing = self.activations + self.layer + self.work
        together = self.result + self.layer
        return self.program + max(quantizing, together, self.result + self.evaluation)

    def __str__(self) -> str:
        parts = {
            "calibration": self.activations,
            "a layer": self.layer + self.work,
            "the result": self.result,
            "evaluation": self.evaluation,
        }
        told = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        return f"about {format_bytes(self.peak)} of host memory at most ({told})"


def host_memory(cfg: LlamaConfig, plan: Plan, *, packs: bool, windows: tuple[int, int], on_host: bool) -> HostMemory:
    """Estimates what quantizing a stored model layer by layer takes.

    Args:
      cfg: the model's sizes.
      plan: method, target, calibration.
      packs: whether a packed file is written, not a run folder.
      windows: of how many windows at a time, and tokens in each, the whole model is run before and after; (0, 0): it
        is not.
      on_host: whether layers are computed in the host's memory: on a CPU.
    """
    shapes = param_shapes(cfg)
    weights = {path: math.prod(shape) for path, shape in shapes.items()}
    outside = sum(weights[path] for path in outside_paths(cfg))
    inside = sum(size for path, size in weights.items() if path.startswith(LAYER_PREFIX))
    layer = FLOAT_BYTES * inside // cfg.num_layers
    # Scales and zero points a group of 64 add half a bit; what no quantizer holds is stored as float16.
    code_bits = 16.0 if plan.target.quantizer is None else plan.target.bits + 0.5
    packed = int(inside * code_bits / 8) + outside * STORED_BYTES
    whole = FLOAT_BYTES * (inside + outside)
    activations = work = 0
    if plan.calibration is not None:
        sequences, length = plan.calibration.tokens.shape
        streams = 2 if plan.method.follows_float else 1
        activations = 2 * streams * FLOAT_BYTES * sequences * length * cfg.hidden_size
        work = max(_forward(cfg, max(1, BATCH_TOKENS // length), length), _rounding(cfg, plan))
    copies = LAYER_COPIES
    if plan.calibration is not None and plan.method.learn is not None:
        copies += LEARNING_COPIES
        # What the forward pass of a step leaves for the backward pass, and the gradients of that.
        work = max(work, 2 * _forward(cfg, min(plan.options.batch_size, sequences), length))
    return HostMemory(
        activations=activations if on_host else activations // 2,
        layer=layer * (copies if on_host else 2),
        work=work if on_host else 0,
        result=packed if packs else 3 * whole,
        evaluation=_evaluation(cfg, whole, *windows, on_host=on_host),
        program=PROGRAM if on_host else PROGRAM_BESIDE_DEVICE,
    )


def check_host_memory(needed: HostMemory, available: int | None) -> None:
    """Refuses what the host cannot hold; `available` None, where the system does not say, refuses nothing.

    Raises:
      MemoryShortError: names what takes most of it.
    """
    if available is None or needed.peak <= available:
        return
    sizes = dataclasses.asdict(needed)
    mends = {
        "activations": "calibrate on fewer or shorter sequences: --sequences, --length",
        "layer": "take a machine with more memory: one layer of this model does not fit",
        "work": "take a method without second moments (rtn, hqq), shorter sequences, or a machine with more memory",
        "result": "write a packed file of fewer bits: a run folder holds float32 masters",
        "program": "take a machine with more memory",
        "evaluation": "leave out --eval, and run eval on the packed file",
    }
    raise MemoryShortError(
        f"this takes {needed}, and {format_bytes(available)} are free", mends[max(sizes, key=lambda name: sizes[name])]
    )


def available_host_memory() -> int | None:
    """Returns the bytes that this process may still take, also inside of a container; None where nobody says."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    limit, used, parts = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and used.is_file() and parts.is_file() and limit.read_text().strip() != "max":
        counts = dict(line.split() for line in parts.read_text().splitlines())
        # Pages of files count as used, and are given back when somebody asks.
        found.append(int(limit.read_text()) - int(used.read_text()) + int(counts["file"]))
    return min(found, default=None)


def _forward(cfg: LlamaConfig, rows: int, length: int) -> int:
    """Of one batch through one layer: attention scores twice, and three activations of the MLP."""
    return FLOAT_BYTES * rows * length * (2 * cfg.num_heads * length + 3 * cfg.intermediate_size)


def _evaluation(cfg: LlamaConfig, whole: int, rows: int, length: int, *, on_host: bool) -> int:
    """Of the whole float32 model, loaded and where it runs, with a batch and its logits."""
    if not rows:
        return 0
    return 2 * whole + _forward(cfg, rows, length) + 2 * FLOAT_BYTES * LOGITS_AT_ONCE if on_host else whole


def _rounding(cfg: LlamaConfig, plan: Plan) -> int:
    """Of the largest kernel: second moments and what is made of them, and copies of the kernel."""
    if not plan.method.needs_data:
        return 0
    widest = max(cfg.hidden_size, cfg.intermediate_size, cfg.num_heads * cfg.head_dim)
    return FLOAT_BYTES * (SQUARES * widest**2 + KERNELS * cfg.hidden_size * cfg.intermediate_size)
