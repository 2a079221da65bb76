"""`generate`: text from a packed file, in numpy."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowbit.cli.threads import set_threads
from lowbit.cli.usage import UsageError


def run(arguments: argparse.Namespace) -> int:
    """Prints text as it comes, and the speed on stderr."""
    set_threads(arguments.threads)
    # Only now: numpy reads the number of threads when it is imported.
    from lowbit.formats import read
    from lowbit.kernels import Runtime, Tokenizer, generate_text

    class CountingTokenizer(Tokenizer):
        """Notes when each token came."""

        times: list[float]

        def stream(self, tokens: Iterable[int], context: Iterable[int] = ()) -> Iterator[str]:
            return super().stream(self._timed(tokens), context)

        def _timed(self, tokens: Iterable[int]) -> Iterator[int]:
            self.times = []
            for token in tokens:
                self.times.append(time.perf_counter())
                yield token

    _check_text(arguments.prompt)
    packed = read(Path(arguments.packed).expanduser(), verify=arguments.verify)
    tokenizer = CountingTokenizer(packed)
    runtime = Runtime(packed, storage=arguments.storage)
    began = time.perf_counter()
    pieces = generate_text(
        runtime,
        tokenizer,
        arguments.prompt,
        arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    print(arguments.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
    print(_speed(began, tokenizer.times), file=sys.stderr)
    return 0


def _speed(began: float, times: list[float]) -> str:
    """The prompt is read at another speed than tokens are written, so the first token is told apart."""
    if not times:
        return "0 tokens: the model ended the text at once"
    first = f"{len(times)} tokens; the first after {times[0] - began:.2f} s"
    if len(times) == 1:
        return first
    return f"{first}, then {(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s"


def _check_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that are no UTF-8 arrive as lone surrogates
        raise UsageError("the prompt is no valid UTF-8 text", "set the terminal to UTF-8") from error
