"""One runtime in several threads: each computes in memory of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from lowbit.formats import PackedModel
from lowbit.kernels import Runtime, library
from lowbit.kernels.compiled import CompiledWeights
from lowbit.kernels.scratch import Scratch

TEXTS = np.random.default_rng(0).integers(0, 40, (2, 1, 21))


class Meeting:
    """The library, whose `name` waits until both threads are in it, and notes where each computes."""

    def __init__(self, name: str, scratch: int):
        self._name, self._scratch = name, scratch
        self._met = threading.Barrier(2, timeout=60)
        self.places: list[int] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(library.library(), name)
        return self._meet(function) if name == self._name else function

    def _meet(self, function: Callable[..., int]) -> Callable[..., int]:
        def met(*arguments: Any) -> int:
            self.places.append(arguments[self._scratch])
            self._met.wait()
            return function(*arguments)

        return met


def in_two_threads(function: Callable[[Any], Any], arguments: Any) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, arguments))


@pytest.mark.parametrize("isa", library.supported()[:1])
def test_threads_that_meet_in_a_forward_pass_compute_apart(make_packed: Callable[..., PackedModel], isa: str) -> None:
    runtime = Runtime(make_packed(), kernels=isa, threads=1)
    alone = [runtime.forward(tokens) for tokens in TEXTS]
    assert isinstance(runtime.weights, CompiledWeights)
    meeting = Meeting("lb_forward", scratch=6)
    runtime.weights._library = meeting  # type: ignore[assignment]
    together = in_two_threads(runtime.forward, TEXTS)
    assert len(set(meeting.places)) == 2
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("isa", library.supported()[:1])
def test_threads_that_meet_in_a_product_compute_apart(make_packed: Callable[..., PackedModel], isa: str) -> None:
    weights = Runtime(make_packed(), kernels=isa, threads=1).weights
    assert isinstance(weights, CompiledWeights)
    matrix = weights.matrices["layers.0.mlp.up_proj.kernel"]
    inputs = np.random.default_rng(1).normal(size=(2, 5, matrix.k)).astype(np.float32)
    alone = [matrix.matmul(x) for x in inputs]
    meeting = Meeting("lb_matmul", scratch=7)
    matrix._library = meeting  # type: ignore[assignment]
    together = in_two_threads(matrix.matmul, inputs)
    assert len(set(meeting.places)) == 2
    np.testing.assert_array_equal(together, alone)


def test_scratch_grows_and_is_kept() -> None:
    scratch = Scratch()
    few = scratch.of(100, more=100)
    assert few.nbytes == 200
    assert few.ctypes.data % 64 == 0
    assert scratch.of(150) is few
    assert scratch.of(201).nbytes == 201
