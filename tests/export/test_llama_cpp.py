"""llama.cpp's rounding of activations in numpy; and, where llama.cpp is installed, llama.cpp itself.

Name an interpreter that imports llama_cpp (of llama-cpp-python) in LOWBIT_LLAMA_CPP_PYTHON, and run with -m slow.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from lowbit.export.llama_cpp import Distance, distance, q8_0, q8_k

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_blocks_of_32_round_half_away_from_zero():
    x = np.zeros((1, 64), np.float32)
    x[0, :4] = [127, 0.5, -1.5, 2.4]
    x[0, 32:34] = [-254, 3]
    expected = np.zeros_like(x)
    expected[0, :4] = [127, 1, -2, 2]
    expected[0, 32:34] = [-254, 4]  # 1.5 steps of 2
    np.testing.assert_array_equal(q8_0(x), expected)
    np.testing.assert_array_equal(q8_0(np.zeros((1, 32), np.float32)), np.zeros((1, 32), np.float32))


def test_blocks_of_32_have_a_scale_of_fp16():
    x = np.full((1, 32), 0.1, np.float32)
    d = np.float16(np.float32(0.1) / np.float32(127))
    np.testing.assert_array_equal(q8_0(x), np.full((1, 32), np.float32(127) * np.float32(d)))


def test_blocks_of_256_round_half_to_even_around_the_largest():
    x = np.zeros((2, 256), np.float32)
    x[0, :4] = [-127, 0.5, 1.5, 127]
    x[1, :2] = [127, -0.5]
    expected = np.zeros_like(x)
    expected[0, :4] = [-127, 0, 2, 127]
    expected[1, :2] = [127, 0]
    np.testing.assert_array_equal(q8_k(x), expected)


def test_distance_is_of_the_mean_and_of_the_largest():
    assert distance(np.zeros((1, 2, 2), np.float32), np.array([[[0, 0], [0, 4]]], np.float32)) == Distance(2.0, 4.0)


def interpreter():
    named = os.environ.get("LOWBIT_LLAMA_CPP_PYTHON")
    if named is None and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama.cpp: pip install llama-cpp-python, or name its python in LOWBIT_LLAMA_CPP_PYTHON")
    return named or sys.executable


@pytest.mark.slow
@pytest.mark.parametrize("part", ["quickstart-1", "quickstart-2", "quickstart-3", "quickstart-4", "wide"])
def test_llama_cpp_computes_the_exported_model(part, monkeypatch, tmp_path):
    """Weights bit for bit, logits and greedy text within what rounding explains, for every width and layout."""
    python = interpreter()
    monkeypatch.syspath_prepend(SCRIPTS)
    import check_llama_cpp

    cases = [case for case in check_llama_cpp.cases() if case.name.startswith(part)]
    assert cases
    for case in cases:
        found = check_llama_cpp.check(case, tmp_path, python)
        assert found["ok"], found
