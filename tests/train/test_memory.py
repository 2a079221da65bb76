"""Memory as it is counted from shapes, against what the compiler states for the same step."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from lowbit.config import base, override
from lowbit.errors import ConfigError, ModelError
from lowbit.llama import LlamaConfig
from lowbit.train import sharding
from lowbit.train.blueprint import blueprint, lower_step
from lowbit.train.memory import compiled_memory, count_memory

SMALL = LlamaConfig(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=192,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=256,
)
WORDY = dataclasses.replace(SMALL, vocab_size=16_384, num_layers=2)
DEEP = dataclasses.replace(SMALL, hidden_size=256, intermediate_size=768, num_layers=6)


def config_of(*overrides):
    config = base()
    config.model.compute_dtype = "float32"  # a CPU widens narrower products, which no accelerator does
    config.train.update({"batch_size": 8, "sequence_length": 128, "tokens": 10**6, "loss_chunks": 4})
    config.evaluation.batch_size = 8
    config.quant.scale_init = "max"
    override(config, overrides)
    return config


def mesh_of(*shape):
    sizes = dict(zip(sharding.AXES, shape, strict=True))
    return sharding.make_mesh(sizes, jax.devices()[: math.prod(shape)])


TAUGHT = ("distill.weight=0.5", "distill.teacher=somewhere")


@pytest.mark.parametrize(
    ("cfg", "mesh", "overrides"),
    [
        (SMALL, (1, 1, 1), ("model.remat=none",)),
        (SMALL, (2, 2, 2), ("train.batch_size=16", "quant.granularity=16")),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (WORDY, (1, 1, 1), TAUGHT),
                (SMALL, (1, 1, 1), ("model.remat=full", "train.accumulate=4", "quant.method=float")),
                (DEEP, (1, 1, 1), ("optimizer.name=muon", "train.batch_size=2", "train.sequence_length=32")),
                (SMALL, (1, 8, 1), ("train.batch_size=16",)),
            )
        ),
    ],
    ids=["none", "three axes", "wordy, taught", "full, accumulated, float", "muon", "fsdp"],
)
def test_counted_memory_is_within_15_percent_of_the_compilers(cfg, mesh, overrides, fused):
    """15 % is what the estimate promises; the state, known exactly, must be exact.

    What a program holds at once is settled by how it is fused, not by how well its fusions are compiled.
    """
    config, places = config_of(*overrides), mesh_of(*mesh)
    teacher = cfg if config.distill.weight else None
    counted = count_memory(config, cfg, places, teacher)
    experiment = blueprint(config, cfg, places, teacher)
    stated = compiled_memory(lower_step(experiment, experiment.abstract_state()).compile(fused))
    scalars = 16  # counters that are not counted, and a rate that the step does not read
    assert counted.state + counted.batch == pytest.approx(stated["arguments"], abs=scalars)
    assert counted.peak == pytest.approx(stated["total"], rel=0.15)


def test_devices_that_are_not_there_count_as_those_that_are():
    config = config_of("train.batch_size=16", "quant.granularity=16")
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    absent = sharding.make_abstract_mesh(sizes, 8)
    assert count_memory(config, SMALL, absent) == count_memory(config, SMALL, mesh_of(2, 2, 2))
    more = sharding.make_abstract_mesh({"data": 16, "fsdp": 32, "tensor": 2}, 1024)
    assert count_memory(config_of("train.batch_size=512", "evaluation.batch_size=512"), SMALL, more).masters > 0


def test_fused_attention_keeps_no_scores():
    config = config_of("model.remat=none")
    plain, fused = (count_memory(config, SMALL, mesh_of(1, 1, 1), fused_attention=f) for f in (False, True))
    rows, length = config.train.batch_size, config.train.sequence_length
    scores = SMALL.num_layers * rows * SMALL.num_heads * length * length * 4
    assert plain.activations - fused.activations >= scores
    # The policy "dots" recomputes plain attention, and keeps what a fused kernel returns: a result and a sum a query.
    plain, fused = (count_memory(config_of(), SMALL, mesh_of(1, 1, 1), fused_attention=f) for f in (False, True))
    queries = SMALL.num_layers * rows * SMALL.num_heads * length
    assert fused.activations - plain.activations == queries * 4 * (SMALL.head_dim + 1)


def test_each_part_grows_with_what_it_is_made_of():
    one = mesh_of(1, 1, 1)
    usual = count_memory(config_of(), SMALL, one)
    weights = sum(leaf.size for leaf in jax.tree.leaves(blueprint(config_of(), SMALL, one).params))
    assert usual.masters == 4 * weights
    assert usual.teacher == 0
    taught = count_memory(config_of(*TAUGHT), SMALL, one, SMALL)
    norms = (2 * SMALL.num_layers + 1) * SMALL.hidden_size
    assert taught.teacher == jnp.bfloat16.dtype.itemsize * weights + 2 * norms  # norms stay float32
    assert taught.loss > usual.loss
    twice = count_memory(config_of("train.batch_size=16"), SMALL, one)
    head_gradient = 4 * SMALL.vocab_size * SMALL.hidden_size
    # Of what is kept, the head's gradient and the tables of the rotation know no batch.
    tables = 2 * 4 * 128 * SMALL.head_dim // 2
    fixed = head_gradient + tables
    assert twice.activations - fixed == pytest.approx(2 * (usual.activations - fixed), abs=1024)
    frozen = count_memory(config_of("optimizer.frozen=params/embed/.*"), SMALL, one)
    assert frozen.masters == usual.masters
    assert frozen.gradients == usual.gradients - head_gradient


@pytest.mark.parametrize(
    ("sizes", "overrides", "error", "message"),
    [
        ((1, 1, 4), (), ModelError, r"'tensor' of 4 cuts through heads \(4 query, 2 key-value\)"),
        ((1, 8, 1), ("quant.granularity=16",), ConfigError, "4 groups cannot be cut 8 ways .* lie on two devices"),
        ((16, 1, 1), (), ConfigError, "a batch of 8 sequences cannot be cut into 1 parts over 16 devices"),
        ((1, 1, 1), ("train.sequence_length=512",), ConfigError, "exceeds the model's 256 positions"),
        ((1, 1, 1), ("distill.weight=0.5",), ConfigError, "starts from no model to learn from"),
    ],
)
def test_what_cannot_run_is_refused_as_by_the_run(sizes, overrides, error, message):
    mesh = sharding.make_abstract_mesh(dict(zip(sharding.AXES, sizes, strict=True)), math.prod(sizes))
    with pytest.raises(error, match=message):
        count_memory(config_of(*overrides), SMALL, mesh)
