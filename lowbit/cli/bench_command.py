"""The arguments of `bench`."""

from lowbit.cli.command import Command, positive
from lowbit.cli.command import argument as _argument

BENCH = Command(
    "bench",
    "time the kernels of this machine",
    "Times products of one to 64 tokens with weights that come from memory, at every width, against the bandwidth of "
    "reading and against numpy's float32, or on a GPU against copying and XLA's bfloat16; then prompts and decoding of "
    "models of public shapes with random weights. Everything takes turns, and medians are shown. Prints tables; -o "
    "keeps the record and draws it.",
    (
        "bench cpu",
        "bench cpu --quick --threads 4",
        "bench cpu --kernels avx2 -o runs/bench_cpu.json",
        "bench gpu -o runs/bench_gpu.json",
    ),
    (
        _argument("device", metavar="DEVICE", choices=("cpu", "gpu"), help="whose kernels: cpu or gpu"),
        _argument(
            "--kernels", choices=("auto", "avx512", "avx2", "neon", "c"), help="cpu: which (default: the fastest)"
        ),
        _argument("--threads", metavar="N", type=positive, help="cpu: besides one (default: all processors)"),
        _argument("--repeats", metavar="N", type=positive, default=5, help="of everything, in turns (default: 5)"),
        _argument("--quick", action="store_true", help="one shape, few batches, the smaller model"),
        _argument("-o", "--output", metavar="FILE.json", help="record to write, with two pictures beside it"),
        _argument("--overwrite", action="store_true", help="replace an existing output"),
    ),
)
