"""What a quantization takes of the host, counted from sizes, and who is sent away."""

import dataclasses

import numpy as np
import pytest

from lowbit.errors import MemoryShortError
from lowbit.llama import LlamaConfig
from lowbit.ptq import METHODS, Calibration, Options, Plan, make_target
from lowbit.ptq.memory import PROGRAM, available_host_memory, check_host_memory, host_memory

SEVEN_B = LlamaConfig(32000, 4096, 11008, 32, num_heads=32, num_kv_heads=32, head_dim=128, tie_embeddings=False)
GIB = 2**30


def plan(name, bits, sequences=64, length=512):
    method = METHODS[name]
    target = make_target(method.grids[0], bits, 64, method.ranges[0])
    calibration = Calibration(np.zeros((sequences, length), np.int32), 0, "x") if method.needs_data else None
    return Plan(method, target, Options(), calibration)


@pytest.mark.parametrize(("name", "bits"), [("gptq", 4), ("gptq", 8), ("awq", 4), ("rtn", 3), ("gpfq", 4)])
def test_seven_billion_weights_fit_24_gib(name, bits):
    for on_host in (True, False):
        needed = host_memory(SEVEN_B, plan(name, bits), packs=True, windows=(0, 0), on_host=on_host)
        assert needed.peak < 24 * GIB
        # No less than the codes that the file will hold, and a layer.
        assert needed.peak > PROGRAM + 6.4e9 * bits / 8
        check_host_memory(needed, 24 * GIB)


def test_parts_grow_with_what_they_are_of():
    few, many = (host_memory(SEVEN_B, plan("gptq", 4, n), packs=True, windows=(0, 0), on_host=True) for n in (64, 128))
    assert many.activations == 2 * few.activations == 2 * 128 * 512 * 4096 * 4
    assert dataclasses.replace(many, activations=few.activations) == few
    follows = host_memory(SEVEN_B, plan("gpfq", 4), packs=True, windows=(0, 0), on_host=True)
    assert follows.activations == 2 * few.activations
    assert host_memory(SEVEN_B, plan("rtn", 4), packs=True, windows=(0, 0), on_host=True).activations == 0


@pytest.mark.parametrize(
    ("asked", "mend"),
    [
        ({"packs": False, "windows": (0, 0)}, "a run folder holds float32 masters"),
        ({"packs": True, "windows": (8, 1024)}, "leave out --eval"),
    ],
)
def test_a_host_that_is_too_small_is_told_what_takes_the_most(asked, mend):
    needed = host_memory(SEVEN_B, plan("gptq", 4), on_host=True, **asked)
    with pytest.raises(MemoryShortError, match=r"about .* of host memory at most .*, and 25,769.8 MB are") as e:
        check_host_memory(needed, 24 * GIB)
    assert mend in str(e.value)
    check_host_memory(needed, None)


def test_long_calibration_is_what_must_give_way():
    needed = host_memory(SEVEN_B, plan("gptq", 2, 2048, 512), packs=True, windows=(0, 0), on_host=True)
    with pytest.raises(MemoryShortError, match="fewer or shorter sequences"):
        check_host_memory(needed, 24 * GIB)


def test_this_system_says_what_is_free():
    assert available_host_memory() is None or available_host_memory() > 0
