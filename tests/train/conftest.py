"""A tiny run: random tokens and a config that trains on them in seconds."""

import numpy as np
import pytest

from lowbit.config import base, override, shrink

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
