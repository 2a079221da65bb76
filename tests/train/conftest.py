"""A tiny run: random tokens and a config that trains on them in seconds."""

import os

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lowbit.config import base, override, shrink

VOCAB = 64


SETTINGS = {
    # Most tests here train the same model: what one has compiled, the next one reads.
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    # Steps are few and small: compiling them well takes longer than running them.
    "jax_disable_most_optimizations": True,
}


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", autouse=True)
def compile_little(cache_folder):
    settings = SETTINGS | {"jax_compilation_cache_dir": cache_folder}
    before = {name: jax.config.values[name] for name in settings}
    _configure(settings)
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})  # for other processes
    yield
    for name in settings:
        del os.environ[name.upper()]
    _configure(before)


def _configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # or the folder that was set when the first test compiled would stay


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
