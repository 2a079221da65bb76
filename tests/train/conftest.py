"""A tiny run: random tokens and a config that trains on them in seconds; and runs that are stopped on the way."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from lowbit.config import base, override, shrink
from lowbit.train import load_trained, prepare, run, train

VOCAB = 64


@pytest.fixture(scope="session")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    rng = np.random.default_rng(0)
    # A noisy cycle: something that a model can learn in a few steps.
    np.save(path, ((np.arange(2000) + rng.integers(0, 3, 2000)) % VOCAB).astype(np.uint16))
    return path


@pytest.fixture
def tiny_config(token_file, tmp_path):
    """Returns make(*overrides) -> config."""

    def make(*overrides):
        config = base()
        config.model.architecture.vocab_size = VOCAB
        config.model.compute_dtype = "float32"
        config.model.remat = "none"
        config.data.train = (str(token_file),)
        config.data.valid = (str(token_file),)
        config.run_folder = str(tmp_path / "run")
        config.log.progress = False
        # Runs of all lengths are one program, whose start is no search: most of what these tests wait for is compiling.
        config.schedule.update({"shape": "constant", "warmup": 0.0})
        config.quant.scale_init = "max"
        override(shrink(config), overrides)
        return config

    return make


@pytest.fixture
def interrupted():
    """Returns interrupted(experiment, step) -> one whose data sends SIGTERM while that batch is being read."""

    def with_signal(experiment, kill_in):
        class Interrupting(type(experiment.train)):
            def batch(self, step):
                if step == kill_in:
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().batch(step)

        fields = {field.name: getattr(experiment.train, field.name) for field in dataclasses.fields(experiment.train)}
        return dataclasses.replace(experiment, train=Interrupting(**fields))

    return with_signal


@pytest.fixture
def ends_with_the_same_bits(interrupted):
    """Returns a check of two configs: that a run stopped after batch `kill_in` and resumed ends as one left alone."""

    def check(cut, whole, kill_in, steps):
        assert train(interrupted(prepare(cut), kill_in)).step == kill_in + 1
        assert run(cut, resume=True).step == steps
        run(whole)
        ours, theirs = (load_trained(config.run_folder) for config in (cut, whole))
        for a, b in ((ours.params, theirs.params), (ours.state, theirs.state)):
            jax.tree.map(np.testing.assert_array_equal, a, b)

    return check
