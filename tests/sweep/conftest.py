"""A tiny model that trains in a second, and a sweep file about it."""

import textwrap

import numpy as np
import pytest

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
    config.quant.scale_init = "max"
    config.log.recorder_every_steps = 0
    config = shrink(config)
    config.train.tokens = variant.tokens
    return config
"""


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
