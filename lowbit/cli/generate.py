"""`generate`: text from a model, as it comes."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lowbit.cli.sources import kind_of
from lowbit.cli.threads import set_threads
from lowbit.cli.usage import UsageError

JAX_FLAGS = ("dtype", "kv_bits", "no_stream")
NUMPY_FLAGS = ("threads", "kernels")


class Writer(NamedTuple):
    """A model that is ready to go on from a prompt.

    Attributes:
      encode: the tokens of the prompt.
      generate: from these, the tokens that follow, each as soon as it is known.
      show: (tokens, those before them) -> text, piece by piece.
      streams: whether tokens come one by one.
      engine: what computes, to be told beside its speed.
    """

    encode: Callable[[str], list[int]]
    generate: Callable[[list[int]], Iterable[int]]
    show: Callable[[Iterable[int], list[int]], Iterator[str]]
    streams: bool
    engine: str


def run(arguments: argparse.Namespace) -> int:
    """Prints text as it comes, and the speed on stderr."""
    _check_text(arguments.prompt)
    _check_draws(arguments)
    if _backend(arguments) == "jax":
        from lowbit.cli import generate_jax

        writer = generate_jax.writer(arguments)
    else:
        writer = _numpy_writer(arguments)
    prompt = writer.encode(arguments.prompt)
    began = time.perf_counter()
    times: list[float] = []

    def timed(tokens: Iterable[int]) -> Iterator[int]:
        for token in tokens:
            times.append(time.perf_counter() - began)
            yield token

    pieces = writer.show(timed(writer.generate(prompt)), prompt)
    print(arguments.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
    print(f"{speed(len(prompt), times, writer.streams)} ({writer.engine})", file=sys.stderr)
    return 0


def speed(prompt: int, times: list[float], streams: bool) -> str:
    """Returns how fast the prompt was read and tokens were written, which are two speeds.

    Args:
      prompt: its tokens.
      times: when each new token came, in seconds since the prompt was given.
      streams: whether they came one by one.
    """
    if not times:
        return "0 tokens: the model ended the text at once"
    count, last = len(times), times[-1]
    if not streams:
        return f"{count} tokens after a prompt of {prompt} in {last:.2f} s: {count / last:.1f} tokens/s"
    first = f"{count} tokens; the first after {times[0]:.2f} s (prompt of {prompt}: {prompt / times[0]:.1f} tokens/s)"
    return first if count == 1 else f"{first}, then {(count - 1) / (last - times[0]):.1f} tokens/s"


def _backend(arguments: argparse.Namespace) -> str:
    """The backend that is asked for or, where none is, the one that runs the source with the fewest packages."""
    packed = kind_of(arguments.source) == "packed"
    backend = arguments.backend or ("numpy" if packed else "jax")
    if backend == "numpy" and not packed:
        raise UsageError(f"--backend numpy runs packed files, and {arguments.source} is none", "export it first")
    others = JAX_FLAGS if backend == "numpy" else NUMPY_FLAGS
    for name in others:
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is not for --backend {backend}", f"leave out {flag}, or take the other backend")
    return str(backend)


def _numpy_writer(arguments: argparse.Namespace) -> Writer:
    set_threads(arguments.threads)
    # Only now: numpy reads the number of threads when it is imported.
    from lowbit.formats import read
    from lowbit.kernels import Runtime, Tokenizer, prompt_tokens

    packed = read(Path(arguments.source).expanduser(), verify=arguments.verify)
    tokenizer = Tokenizer(packed)
    # A storage can only be chosen in numpy: whoever names one has chosen that.
    kernels = arguments.kernels or ("auto" if arguments.storage is None else "numpy")
    runtime = Runtime(
        packed,
        storage=arguments.storage,
        kernels=kernels,
        activations=arguments.activations,
        threads=arguments.threads,
    )

    def generate(prompt: list[int]) -> Iterator[int]:
        return runtime.generate(
            prompt,
            arguments.tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )

    engine = f"{runtime.kernels} kernels, {runtime.weights.activations} activations"
    return Writer(lambda text: prompt_tokens(tokenizer, text, runtime.config), generate, tokenizer.stream, True, engine)


def _check_draws(arguments: argparse.Namespace) -> None:
    for name in ("top_k", "top_p"):
        if arguments.temperature == 0 and getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            cause = f"{flag} says what to draw from, and --temperature 0 draws nothing"
            raise UsageError(cause, "give --temperature 1, or leave it out")


def _check_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that are no UTF-8 arrive as lone surrogates
        raise UsageError("the prompt is no valid UTF-8 text", "set the terminal to UTF-8") from error
