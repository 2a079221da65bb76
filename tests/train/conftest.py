"""A tiny run: random tokens and a config that trains on them in seconds."""

import os

import jax
import numpy as np
import pytest

from lowbit.config import base, override, shrink

VOCAB = 64


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Most tests here train the same model: what one has compiled, the next one reads."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # for other processes
    yield
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


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
        override(shrink(config), overrides)
        return config

    return make
