"""What a run will cost, from its config and the sizes of its model: memory, arithmetic, hours, files."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.errors import ConfigError, ModelError
from lowbit.llama import LlamaConfig
from lowbit.llama.flops import kernel_weights, train_flops
from lowbit.models.attention import resolve_attention
from lowbit.train import sharding
from lowbit.train.accelerators import Accelerator, Kind, Measurement, nearest_measurement
from lowbit.train.blueprint import blueprint, lower_step
from lowbit.train.memory import Memory, compiled_memory, count_memory
from lowbit.train.quantization import FLOAT
from lowbit.train.setup import start_sizes
from lowbit.train.sources import float_origin, load_sizes
from lowbit.train.teacher import asks_for_teacher
from lowbit.tree import bits_report

MODEL_COLLECTIONS = ("params", "quant", "grid")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
      mesh: size of each axis.
      quantized: weights that get codes.
      parameters: all weights of the model.
      memory: bytes a device, counted.
      compiled: bytes a device as the compiler here states them ("total"); None where it was not asked.
      steps: optimizer steps.
      tokens: tokens trained on.
      flops_per_token: model FLOPs of training on one token, a teacher's forward pass included.
      tokens_per_s: over all devices; None where nothing says how fast the device is.
      measurement: where the speed is from; None where it was given, or is not known.
      checkpoint_bytes: of one checkpoint, before compression.
      packed_bytes: of the packed file's tensors.
    """

    mesh: Mapping[str, int]
    quantized: int
    parameters: int
    memory: Memory
    compiled: int | None
    steps: int
    tokens: int
    flops_per_token: float
    tokens_per_s: float | None
    measurement: Measurement | None
    checkpoint_bytes: int
    packed_bytes: int

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return math.prod(self.mesh.values())

    @property
    def hours(self) -> float | None:
        """Time of the steps; evaluation, checkpoints and compilation come to it."""
        return None if self.tokens_per_s is None else self.tokens / self.tokens_per_s / 3600


def estimate(
    config: ConfigDict,
    device: Accelerator,
    mesh: Mapping[str, int],
    *,
    results: Path,
    share: float | None = None,
    tokens_per_s: float | None = None,
    compiling: bool = False,
) -> Estimate:
    """Estimates a run; neither its devices nor its weights nor its data need be there.

    Warns of what is not counted: the loss from a teacher's cache, and the bias by which cuDNN keeps documents apart.

    Args:
      config: of the run.
      device: what it will run on.
      mesh: size of each axis, none -1.
      results: folder with results of `benchmarks.train_throughput`, the measured speeds.
      share: of the device's peak, in place of a measurement.
      tokens_per_s: over all devices, in place of both.
      compiling: also compile the step for the devices of this machine, and report what the compiler says.

    Raises:
      LowbitError: what `prepare` would refuse of everything that needs neither weights nor data, or too few devices
        here to compile for.
    """
    cfg = model_sizes(config)
    teacher = teacher_sizes(config, cfg)
    count = math.prod(mesh.values())
    places = sharding.make_abstract_mesh(mesh, count)
    attention = resolve_attention(config.model.attention, config.model.compute_dtype, cfg.head_dim, device.backend)
    _warn_of_uncounted(config, attention)
    memory = count_memory(config, cfg, places, teacher, fused_attention=attention == "cudnn")

    alone = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    experiment = blueprint(config, cfg, alone, teacher)
    bits = bits_report(experiment.rules, experiment.params)
    state = jax.eval_shape(experiment.make_state, experiment.params)
    constants = {name: tree for name, tree in state.constants.items() if name in MODEL_COLLECTIONS}
    kept = jax.tree.leaves((state.params, state.opt_state, constants))

    flops = train_flops(cfg, config.train.sequence_length, teacher)
    measurement = None
    if tokens_per_s is None:
        if share is None:
            measurement = nearest_measurement(results, device, kernel_weights(cfg), _kind(config), mesh)
        achieved = share * device.peak_flops if share is not None else measurement.flops if measurement else None
        tokens_per_s = None if achieved is None else count * achieved / flops
    steps = configs.steps(config)
    return Estimate(
        mesh=dict(mesh),
        quantized=sum(p.weights for p in bits.parameters if p.quantized),
        parameters=sum(p.weights for p in bits.parameters),
        memory=memory,
        compiled=_compiled_total(config, cfg, mesh, teacher) if compiling else None,
        steps=steps,
        tokens=steps * config.train.batch_size * config.train.sequence_length,
        flops_per_token=flops,
        tokens_per_s=tokens_per_s,
        measurement=measurement,
        checkpoint_bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept),
        packed_bytes=math.ceil(sum(p.code_bits + p.scale_bits for p in bits.parameters) / 8),
    )


def model_sizes(config: ConfigDict) -> LlamaConfig:
    """Returns the sizes of the model that a config trains, without reading a weight; raises as `start_sizes`."""
    return start_sizes(config, load_sizes(config.model.source) if config.model.source else None)


def teacher_sizes(config: ConfigDict, student: LlamaConfig) -> LlamaConfig | None:
    """Returns the sizes of the teacher, None where none teaches.

    Raises:
      ModelError: its vocabulary is not the student's.
      LowbitError: it cannot be found.
    """
    if not asks_for_teacher(config) or config.distill.cache or not (config.distill.teacher or config.model.source):
        return None  # the second is refused where the config is checked
    name = config.distill.teacher or float_origin(config.model.source)
    sizes = load_sizes(name)
    if sizes.vocab_size != student.vocab_size:
        raise ModelError(
            f"the teacher {name} has a vocabulary of {sizes.vocab_size:,} tokens, "
            f"the student one of {student.vocab_size:,}",
            "choose a teacher with the student's tokenizer: its logits are compared token by token",
        )
    return sizes


def _warn_of_uncounted(config: ConfigDict, attention: str) -> None:
    if config.distill.cache:
        warnings.warn(
            "distill.cache: the batch is counted without what the cache holds, and the loss as cross entropy alone; "
            "memory and time will be more than estimated",
            stacklevel=3,
        )
    if not config.data.attend_across_documents and attention == "cudnn":
        warnings.warn(
            "data.attend_across_documents=false: the 16-bit bias [b 1 t t] of cuDNN attention is not counted; memory "
            "and time will be more than estimated",
            stacklevel=3,
        )


def _kind(config: ConfigDict) -> Kind:
    if asks_for_teacher(config):
        return "distilled"
    return "float" if config.quant.method == FLOAT else "quantized"


def _compiled_total(config: ConfigDict, cfg: LlamaConfig, mesh: Mapping[str, int], teacher: LlamaConfig | None) -> int:
    count = math.prod(mesh.values())
    if count > jax.device_count():
        raise ConfigError(
            f"the mesh has {count} devices, and {jax.device_count()} are here to compile for",
            "leave out --compile, or run it there; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N "
            "makes more of one",
        )
    experiment = blueprint(config, cfg, sharding.make_mesh(mesh, jax.devices()[:count]), teacher)
    return compiled_memory(lower_step(experiment, experiment.abstract_state()).compile())["total"]
