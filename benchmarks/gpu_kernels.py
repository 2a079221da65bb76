"""The GPU's kernel beside XLA's bfloat16 and gemlite, in turns on the same GPU: products from memory, and decoding.

`python -m lowbit bench gpu` measures the same without a peer.

Command: python -m benchmarks.gpu_kernels --peer /path/to/python -o docs/results/gpu_kernels_h100.json
Hardware: an H100; the peer's python has torch, triton and gemlite, and may be the same.
Expected: docs/gpu_kernels.md, which `make docs` writes from the JSON.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer's process needs memory of the same GPU

from lowbit.bench.cpu import Peer
from lowbit.bench.gpu import GpuPlan, measure_anywhere, measure_gpu

GEMLITE = ("2 bits, 128 a scale", "4 bits, 128 a scale")
"""What benchmarks/gemlite_peer.py knows."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with gemlite")
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="of products")
    parser.add_argument("--bits", type=float, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--models", nargs="*", help="to be decoded")
    parser.add_argument("--decode-bits", type=float, nargs="+")
    parser.add_argument("--decode-batches", type=int, nargs="+")
    parser.add_argument("--prompt", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--any-device", action="store_true", help="times the portable products where there is no GPU")
    parser.add_argument("-o", "--output", metavar="FILE", required=True)
    options = parser.parse_args(argv)
    names = ("bits", "batches", "models", "decode_bits", "decode_batches", "prompt", "tokens", "repeats")
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in names
        if (value := getattr(options, name)) is not None
    }
    if options.shapes:
        changes["shapes"] = tuple((int(k), int(n)) for n, _, k in (shape.partition("x") for shape in options.shapes))
    peer = None
    if options.peer:
        peer = Peer("gemlite", [options.peer, str(Path(__file__).with_name("gemlite_peer.py"))], GEMLITE, {})
    run = measure_anywhere if options.any_device else measure_gpu
    record = run(GpuPlan(**changes), peer, lambda line: print(line, file=sys.stderr, flush=True))
    if record["git_commit"] is None:  # outside of its checkout
        record["git_commit"] = os.environ.get("LOWBIT_COMMIT")
    record["command"] = shlex.join(
        ["python", "-m", "benchmarks.gpu_kernels", *(sys.argv[1:] if argv is None else argv)]
    )
    Path(options.output).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
