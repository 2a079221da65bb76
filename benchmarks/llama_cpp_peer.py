"""llama.cpp under the same clock: a child process that times its products and its decoding on request.

Runs in an environment of its own (numpy and llama-cpp-python, built for this machine) and imports nothing of lowbit. It
reads one JSON request a line and answers with one JSON line, so that the parent can take turns with it:

    {"product": "tq2_0", "k": 4096, "n": 4096, "batch": 1, "threads": 2}   -> {"seconds": ...}
    {"decode": "model.gguf", "tokens": 32, "prompt": 0, "threads": 2}      -> {"seconds_a_token": ..., ...}
    {"version": true}                                                      -> {"version": ..., "features": ...}

Command: started by benchmarks/cpu_kernels.py --peer PYTHON.
Hardware: any CPU that llama.cpp runs on.
Expected: docs/kernels.md.
"""

import ctypes
import json
import os
import sys
import time
from typing import Any

import llama_cpp
import numpy as np

TYPES = {"q4_0": 2, "q8_0": 8, "q2_k": 10, "tq1_0": 34, "tq2_0": 35, "q1_0": 41}
"""Of ggml's enum."""

FOLDER = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")

_BASE = ctypes.CDLL(os.path.join(FOLDER, "libggml-base.so"))
_CPU = ctypes.CDLL(os.path.join(FOLDER, "libggml-cpu.so"))


class _Params(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _declare() -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (pointer, [_Params]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_new_graph_custom": (pointer, [pointer, size, ctypes.c_bool]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_get_data": (pointer, [pointer]),
        "ggml_nbytes": (size, [pointer]),
        "ggml_quantize_chunk": (
            size,
            [ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(_BASE, name)
        function.restype, function.argtypes = result, arguments
    _CPU.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
    _CPU.ggml_cpu_init()


class Products:
    """One graph that multiplies one activation with many copies of a matrix, more than the caches hold."""

    def __init__(self, kind: str, k: int, n: int, batch: int, total_bytes: int):
        rng = np.random.default_rng(0)
        probe = _BASE.ggml_init(_Params(1 << 20, None, True))
        nbytes = _BASE.ggml_nbytes(_BASE.ggml_new_tensor_2d(probe, TYPES[kind], k, n))
        _BASE.ggml_free(probe)
        self.copies = max(2, total_bytes // nbytes)
        room = self.copies * (nbytes + 4 * n * batch + 4096) + 4 * k * batch + (256 << 20)
        self.context = _BASE.ggml_init(_Params(room, None, False))
        x = _BASE.ggml_new_tensor_2d(self.context, 0, k, batch)
        floats = rng.normal(size=(batch, k)).astype(np.float32)
        ctypes.memmove(_BASE.ggml_get_data(x), floats.ctypes.data, floats.nbytes)
        values = rng.normal(size=(n, k)).astype(np.float32)
        first = None
        self.graph = _BASE.ggml_new_graph_custom(self.context, 4 * self.copies + 64, False)
        for _ in range(self.copies):
            w = _BASE.ggml_new_tensor_2d(self.context, TYPES[kind], k, n)
            at = _BASE.ggml_get_data(w)
            if first is None:
                first = at
                importance = np.ones(k, np.float32)  # some types refuse to be quantized without
                _BASE.ggml_quantize_chunk(TYPES[kind], values.ctypes.data, at, 0, n, k, importance.ctypes.data)
            else:
                ctypes.memmove(at, first, nbytes)
            _BASE.ggml_build_forward_expand(self.graph, _BASE.ggml_mul_mat(self.context, w, x))

    def seconds(self, threads: int) -> float:
        """Times one product, the mean over the copies."""
        began = time.perf_counter()
        _CPU.ggml_graph_compute_with_ctx(self.context, self.graph, threads)
        return (time.perf_counter() - began) / self.copies

    def close(self) -> None:
        """Frees the copies."""
        _BASE.ggml_free(self.context)


class Decoder:
    """A model of a GGUF file."""

    def __init__(self, path: str, threads: int):
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.use_mmap = True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")

    def _feed(self, tokens: list[int]) -> float:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        began = time.perf_counter()
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        seconds = time.perf_counter() - began
        assert status == 0
        assert np.isfinite(logits[0])
        return seconds

    def measure(self, prompt: int, tokens: int) -> dict[str, Any]:
        """Times a prompt, and each of the tokens after it."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        ids = np.random.default_rng(1).integers(3, 40_000, prompt + tokens).tolist()
        first = self._feed(ids[:prompt])
        return {"prompt_seconds": first, "token_seconds": [self._feed([token]) for token in ids[prompt:]]}

    def close(self) -> None:
        """Frees the model."""
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def peak_bytes() -> int:
    """Returns the largest resident size of this process so far; Linux only."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    """Answers requests until the input ends; what was set up is kept for the next request of its kind."""
    _declare()
    kept: tuple[str, Products | Decoder] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "version" in request:
            features = llama_cpp.llama_print_system_info().decode()
            print(json.dumps({"version": llama_cpp.__version__, "features": features}), flush=True)
            continue
        threads = request.pop("threads")
        decoding = "decode" in request
        sizes = {key: request.pop(key) for key in ("prompt", "tokens")} if decoding else {}
        key = json.dumps(request) + (str(threads) if decoding else "")
        if kept is None or kept[0] != key:
            if kept is not None:
                kept[1].close()
            made: Products | Decoder
            if decoding:
                made = Decoder(request["decode"], threads)
                made.measure(8, 2)
            else:
                made = Products(request["product"], *(request[x] for x in ("k", "n", "batch", "total_bytes")))
                made.seconds(threads)
            kept = (key, made)
        if isinstance(kept[1], Decoder):
            answer = kept[1].measure(**sizes) | {"peak_bytes": peak_bytes()}
        else:
            answer = {"seconds": kept[1].seconds(threads)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
