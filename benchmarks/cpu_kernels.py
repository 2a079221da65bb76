"""The CPU kernels beside llama.cpp, in turns on the same machine: products from memory, and decoding.

`python -m lowbit bench cpu` measures the same without a peer.

Command: python -m benchmarks.cpu_kernels --peer /path/to/python -o docs/results/cpu_kernels.json
Hardware: any CPU; the peer's python has llama-cpp-python, built for this machine.
Expected: docs/kernels.md, which `make docs` writes from the JSON.
"""

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.llama_cpp_models import write_model
from lowbit.bench.cpu import Peer, Plan, measure
from lowbit.kernels import library

PRODUCTS = ("tq2_0", "tq1_0", "q2_k", "q4_0", "q1_0")
MODELS = ("tq2_0", "q4_0")


def llama_cpp(python: str) -> Peer:
    """Returns llama.cpp in an environment of its own."""

    def model(kind: str, folder: Path, shape: str, embedding_bits: int) -> Path:
        return write_model(folder, shape, embedding_bits, kind)

    script = Path(__file__).with_name("llama_cpp_peer.py")
    return Peer("llama.cpp", [python, str(script)], PRODUCTS, {kind: functools.partial(model, kind) for kind in MODELS})


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with llama-cpp-python")
    parser.add_argument("--kernels", default="auto", choices=library.KERNELS)
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all processors")
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="of products")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--models", nargs="*", help="to be decoded")
    parser.add_argument("--embedding-bits", type=int, nargs="+")
    parser.add_argument("--prompt", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("-o", "--output", metavar="FILE", required=True)
    options = parser.parse_args(argv)
    threads = tuple(options.threads or sorted({1, library.default_threads()}))
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("batches", "models", "embedding_bits", "prompt", "tokens", "repeats")
        if (value := getattr(options, name)) is not None
    }
    if options.shapes:
        changes["shapes"] = tuple((int(k), int(n)) for n, _, k in (shape.partition("x") for shape in options.shapes))
    peer = llama_cpp(options.peer) if options.peer else None
    record = measure(Plan(options.kernels, threads, **changes), peer, lambda line: print(line, file=sys.stderr))
    record["command"] = shlex.join(["python", "-m", "benchmarks.cpu_kernels", *(argv or sys.argv[1:])])
    Path(options.output).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
