"""A tiny model that trains in a second, and a sweep file about it."""

import os
import textwrap

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

VOCAB = 64

BASE = f"""
from lowbit.config import base, shrink, variants

def get_config(arg=""):
    variant = variants(arg, tokens=1024)
    config = base()
    config.model.architecture.vocab_size = {VOCAB}
    config.model.compute_dtype = "float32"
    config.model.remat = "none"
    config.data.train = ("TOKENS",)
    config.data.valid = ("TOKENS",)
    config.log.progress = False
    config.log.recorder_every_steps = 0
    config = shrink(config)
    config.train.tokens = variant.tokens
    return config
"""


SETTINGS = {
    # Most tests here train the same model: what one has compiled, the next one reads.
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0.1,
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
def base(tmp_path_factory):
    """The path of a config file: four steps of a tiny model from scratch."""
    folder = tmp_path_factory.mktemp("configs")
    rng = np.random.default_rng(0)
    tokens = folder / "tokens.npy"
    # A noisy cycle: something that a model can learn in a few steps.
    np.save(tokens, ((np.arange(2000) + rng.integers(0, 3, 2000)) % VOCAB).astype(np.uint16))
    path = folder / "tiny.py"
    path.write_text(textwrap.dedent(BASE).replace("TOKENS", str(tokens)))
    return str(path)
