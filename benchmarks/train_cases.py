"""One case of the training benchmark: a method on a mesh, compiled and run by the project's own train step."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lowbit import config as configs
from lowbit.config import ConfigDict, base
from lowbit.errors import ConfigError
from lowbit.llama import LlamaConfig
from lowbit.llama.flops import train_flops
from lowbit.models.attention import resolve_attention
from lowbit.train import Experiment, TrainState, sharding
from lowbit.train.blueprint import blueprint, lower_step
from lowbit.train.learner import make_model
from lowbit.train.memory import compiled_memory, count_memory

FLOAT, DISTILL = "float", "+distill"


class Case(NamedTuple):
    """What one line of the result is about.

    Attributes:
      name: as given: "float", "2", "2+distill", each perhaps with settings: "2:model.remat=full,train.batch_size=64".
      mesh: sizes of (data, fsdp, tensor).
    """

    name: str
    mesh: tuple[int, int, int]

    @property
    def devices(self) -> int:
        """How many it runs on."""
        data, fsdp, tensor = self.mesh
        return data * fsdp * tensor

    @property
    def distilled(self) -> bool:
        """Whether a float teacher runs beside it."""
        return self.name.partition(":")[0].endswith(DISTILL)


def case_config(case: Case, settings: Sequence[str], rows: int, length: int) -> ConfigDict:
    """Returns the config of a case.

    Args:
      case: its method and settings.
      settings: `key=value` for all cases; those in the case's own name come after.
      rows: sequences on each device along the data and fsdp axes.
      length: tokens of a sequence.

    Raises:
      ConfigError: too few devices, a method that is none, or a setting that the config does not have.
    """
    if case.devices > jax.device_count():
        raise ConfigError(
            f"mesh {case.mesh} needs {case.devices} devices, here are {jax.device_count()}", "make it smaller"
        )
    method, _, own = case.name.partition(":")
    method = method.removesuffix(DISTILL)
    config = base()
    data, fsdp, tensor = case.mesh
    config.mesh.update({"data": data, "fsdp": fsdp, "tensor": tensor})
    config.train.update({"batch_size": rows, "sequence_length": length})
    config.quant.scale_init = "max"  # where a scale starts is nothing to a step's time
    if method == FLOAT:
        config.quant.method = FLOAT
    else:
        config.quant.bits = configs.parse(method, float, "a variant")
    if case.distilled:
        config.distill.update({"weight": 0.5, "teacher": "the start"})
    configs.override(config, [*settings, *filter(None, own.split(","))])
    config.train.batch_size *= data * fsdp
    config.evaluation.batch_size = config.train.batch_size
    config.train.tokens = 1000 * config.train.batch_size * length
    return config


@dataclasses.dataclass
class Bench:
    """A compiled case.

    Attributes:
      case: what it is.
      experiment: its parts.
      start: makes the state before the first step from a key, on the devices.
      step: the compiled train step.
      batch: random tokens i32[b t+1].
      record: what is known of it so far.
      step_seconds: of each timing.
    """

    case: Case
    experiment: Experiment
    start: Any
    step: Any
    batch: jax.Array
    record: dict[str, Any]
    step_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Predictions in a batch."""
        return self.experiment.train.tokens_per_batch


def make_bench(case: Case, config: ConfigDict, cfg: LlamaConfig, seed: int) -> Bench:
    """Compiles a case; nothing of it is on the devices yet but a batch.

    Raises:
      LowbitError: a config that cannot be.
    """
    mesh = sharding.make_mesh(config.mesh.to_dict(), jax.devices()[: case.devices])
    experiment = blueprint(config, cfg, mesh, teacher=cfg if case.distilled else None)
    state = experiment.abstract_state()
    began = time.perf_counter()
    lowered = lower_step(experiment, state)
    traced = time.perf_counter()
    step = lowered.compile()
    compiled = time.perf_counter()
    length = config.train.sequence_length
    flops = train_flops(cfg, length, cfg if case.distilled else None)
    record = {
        "variant": case.name,
        "mesh": dict(zip(sharding.AXES, case.mesh, strict=True)),
        "batch_size": config.train.batch_size,
        "sequence_length": length,
        "accumulate": config.train.accumulate,
        "loss_chunks": config.train.loss_chunks,
        "remat": config.model.remat,
        "attention": config.model.attention,
        "compute_dtype": config.model.compute_dtype,
        "model_flops_per_token": flops,
        "trace_seconds": traced - began,
        "compile_seconds": compiled - traced,
        "memory": {"counted": _counted(config, cfg, mesh, case), "compiled": compiled_memory(step)},
    }
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (config.train.batch_size, length + 1), np.int32)
    return Bench(case, experiment, _starter(experiment), step, sharding.shard_batch(mesh, tokens), record)


def _counted(config: ConfigDict, cfg: LlamaConfig, mesh: Mesh, case: Case) -> dict[str, int]:
    """What `estimate` would say of the case on the devices that are here."""
    attention = resolve_attention(config.model.attention, config.model.compute_dtype, cfg.head_dim)
    memory = count_memory(config, cfg, mesh, cfg if case.distilled else None, fused_attention=attention == "cudnn")
    return dataclasses.asdict(memory) | {"peak": memory.peak}


def _starter(experiment: Experiment) -> Any:
    """Returns start(key) -> state, random, made where it will lie."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state())
    plain = make_model(experiment.config, experiment.cfg, None)

    def start(key: jax.Array) -> TrainState:
        params = plain.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
        # The teacher is the float model that the student starts from, as it usually is.
        teachers = {
            name: jax.tree.map(lambda p, leaf: p.astype(leaf.dtype), params, shapes)
            for name, shapes in experiment.constants.items()
        }
        return dataclasses.replace(experiment, constants=teachers).make_state(params)

    return jax.jit(start, out_shardings=shardings)


def run_steps(bench: Bench, state: TrainState, steps: int) -> tuple[TrainState, Mapping[str, jax.Array]]:
    """Runs steps on the same batch, and returns when the device is done."""
    metrics: Mapping[str, jax.Array] = {}
    for _ in range(steps):
        state, metrics = bench.step(state, bench.batch)
    jax.block_until_ready(metrics)
    return state, metrics


def time_steps(bench: Bench, seed: int, steps: int) -> Mapping[str, Any]:
    """Adds one timing of `steps` steps, from a fresh state and after one step of warm-up; returns the last metrics."""
    state, _ = run_steps(bench, bench.start(jax.random.key(seed)), 1)
    began = time.perf_counter()
    state, metrics = run_steps(bench, state, steps)
    bench.step_seconds.append((time.perf_counter() - began) / steps)
    return jax.device_get(metrics)
