"""The child that multiplies with gemlite's Triton kernels; run by a python with torch, see `lowbit.bench.child`.

{"version": true} and {"product": "2 bits", "k": 8192, "n": 8192, "batch": 1}; weights have a scale for each 128 inputs.
Copies of the weights larger than the cache are multiplied one after another in a CUDA graph. Once its search for the
fastest kernels has taken --budget seconds in all, further products are answered with null.
"""

import argparse
import contextlib
import copy
import json
import statistics
import sys
import time
from typing import Any

import gemlite
import torch
from gemlite.helper import A16Wn

TOTAL_BYTES = 256 << 20
GROUP = 128
KINDS = {"2 bits, 128 a scale": 2, "4 bits, 128 a scale": 4}
REPLAYS = 8


class Products:
    """Products of one kind and size, captured."""

    def __init__(self, bits: int, k: int, n: int, batch: int):
        codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, device="cuda")
        scale = torch.full((n * k // GROUP, 1), k**-0.5, dtype=torch.bfloat16, device="cuda")
        zero = torch.full_like(scale, (2**bits - 1) / 2)
        first = A16Wn(device="cuda:0", dtype=torch.bfloat16).from_weights(codes, scale, zero, bits, GROUP)
        copies = max(2, TOTAL_BYTES * 8 // (bits * n * k))
        self._layers = [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
        self._x = torch.randn((batch, k), dtype=torch.bfloat16, device="cuda")
        for layer in self._layers:  # finds its kernel, and compiles it
            layer(self._x)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = [layer(self._x) for layer in self._layers]

    def seconds(self) -> float:
        """Returns the time of one product, the median of a few replays."""
        times = []
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / len(self._layers))
        return statistics.median(times)


def _made(kind: str, size: tuple[int, int, int]) -> Products | None:
    """Products, or None where it has no kernel for them; what it prints is not to be taken for an answer."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            return Products(KINDS[kind], *size)
        except Exception as error:  # of Triton, of the driver, of its own checks: any of them is "no figure"
            print(f"gemlite, {kind}, {size}: {error}")
            return None


def main() -> None:
    """Answers requests until the input ends; products of the last size are kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=150)
    budget = parser.parse_args().budget
    kept: dict[Any, Products | None] = {}
    searched = 0.0
    for line in sys.stdin:
        request = json.loads(line)
        if "version" in request:
            answer: dict[str, Any] = {"version": gemlite.__version__, "kinds": list(KINDS)}
        else:
            size = request["k"], request["n"], request["batch"]
            kept = {key: products for key, products in kept.items() if key[1:] == size}
            key = request["product"], *size
            if key not in kept:
                began = time.perf_counter()
                kept[key] = _made(request["product"], size) if searched < budget else None
                searched += time.perf_counter() - began
            products = kept[key]
            answer = {"seconds": None if products is None else products.seconds()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
