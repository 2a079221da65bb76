"""The arguments of `generate`."""

from lowbit.cli.command import Command, positive, whole
from lowbit.cli.command import argument as _argument

KV_CACHES = {
    "32": "float32",
    "16": "bfloat16",
    "8": "int8",
    "4": "int4",
    "8-minmax": "int8_minmax",
    "4-minmax": "int4_minmax",
}
"""What --kv-bits of the commands that write text names: kinds of `lowbit.generation`."""

NO_VERIFY = _argument(
    "--no-verify",
    dest="verify",
    action="store_false",
    help="open the packed file without comparing its tensors with their checksums",
)

GENERATE = Command(
    "generate",
    "write text with a packed file, in numpy or jax",
    "Prints the prompt and its continuation, token by token, and the speed on stderr. Temperature 0, the default, "
    "takes the likeliest token each time; equal seeds give equal text on one backend. A packed file runs in numpy, "
    "which needs two packages, numpy and tokenizers, or with --backend jax on any device; other models run in jax.",
    (
        "generate w2.lowbit --prompt 'The ship'",
        "generate w2.lowbit --prompt 'The ship' --tokens 200 --temperature 0.8 --top-p 0.95 --seed 1",
        "generate w2.lowbit --prompt 'The ship' --backend jax --kv-bits 4",
    ),
    (
        _argument(
            "source", metavar="SOURCE", help="packed file; for jax also a run, Hugging Face folder, hub name or .gguf"
        ),
        _argument("--prompt", metavar="TEXT", required=True, help="text to go on from; '' starts at the bos token"),
        _argument(
            "--tokens", "--max-tokens", metavar="N", type=positive, default=100, help="tokens at most (default: 100)"
        ),
        _argument(
            "--temperature", metavar="X", type=float, default=0.0, help="divides the logits (default: 0, the likeliest)"
        ),
        _argument("--top-k", metavar="N", type=int, help="draw among the N likeliest tokens"),
        _argument("--top-p", metavar="P", type=float, help="draw among the fewest tokens of total probability P"),
        _argument("--seed", metavar="N", type=whole, default=0, help="of the draws (default: 0)"),
        _argument("--backend", choices=("numpy", "jax"), help="default: numpy for a packed file, jax for all else"),
        _argument(
            "--storage",
            choices=("float32", "packed"),
            help="of a packed file's weights: decoded once (default in numpy), or at every use: least memory (in jax)",
        ),
        _argument(
            "--activations",
            choices=("float32", "int8"),
            help="meet packed weights as they are, or rounded to 8 bits a token, with integer sums (the default of "
            "compiled kernels)",
        ),
        _argument(
            "--kernels",
            choices=("auto", "numpy", "avx512", "avx2", "neon", "c"),
            help="of a packed file: compiled ones, the fastest by default, or numpy (default with --storage)",
        ),
        _argument("--dtype", choices=("float32", "bfloat16"), help="jax: of the rest (default: float32 on a CPU)"),
        _argument(
            "--kv-bits",
            choices=tuple(KV_CACHES),
            help="jax: of keys and values (default: those of --dtype)",
        ),
        _argument("--no-stream", action="store_true", help="jax: one program on the device, text at the end"),
        _argument(
            "--threads",
            metavar="N",
            type=positive,
            help="of compiled kernels (default: all), or of numpy's BLAS (default: 1, or as OPENBLAS_NUM_THREADS says)",
        ),
        NO_VERIFY,
    ),
)
