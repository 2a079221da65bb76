"""A float decoder of two small layers, some text, and a trial of it."""

import jax
import numpy as np
import pytest

from lowbit.llama import LlamaConfig, param_shapes
from lowbit.mixed import Trial
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Calibration, Options, Plan, make_target
from lowbit.tree import unflatten

CFG = LlamaConfig(40, 16, 24, 2, num_heads=2, num_kv_heads=1, head_dim=8, max_positions=32)
TOKENS = np.random.default_rng(7).integers(0, 40, (4, 12)).astype(np.int32)


@pytest.fixture(scope="session")
def source():
    rng = np.random.default_rng(2)
    flat = {}
    for path, shape in param_shapes(CFG).items():
        flat[path] = rng.standard_normal(shape).astype(np.float32) * (0.3 if "kernel" in path else 1.0)
    return ModelInMemory(Pretrained(CFG, unflatten(flat), {}))


@pytest.fixture(scope="session")
def make_trial():
    """Returns make(method, widths, grid) -> Trial; scales begin at the maximum, which is no search to compile."""

    def make(method="rtn", widths=(2.0, 3.0, 4.0), grid="paretoq", calibrated=True):
        target = make_target(grid, widths[-1], "channel", "max")
        calibration = Calibration(TOKENS, 0, "noise") if calibrated else None
        return Trial(Plan(METHODS[method], target, Options(), calibration), widths)

    return make


@pytest.fixture(scope="session")
def one_device():
    """Programs for eight take longer to compile."""
    return jax.devices()[:1]
