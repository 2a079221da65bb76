"""`eval`: how well a model predicts texts."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.cli import predictors
from lowbit.cli.tables import table
from lowbit.cli.usage import UsageError, check_output
from lowbit.data import TextTokenizer, byte_lengths, document_separator, open_windows
from lowbit.errors import TokenizerError
from lowbit.evals import Evaluation, evaluate
from lowbit.evals.predictor import Predictor
from lowbit.report.table import format_perplexity

LONGEST_WINDOW = 1024
"""Unless --length asks for more."""


def run(arguments: argparse.Namespace) -> int:
    """Evaluates on each text, prints a table, and writes JSON if asked."""
    if arguments.output is not None:
        check_output(Path(arguments.output), arguments.overwrite)
    model = predictors.from_arguments(arguments)
    length = arguments.length or min(model.cfg.max_positions, LONGEST_WINDOW)
    if length > model.cfg.max_positions:
        raise UsageError(
            f"--length {length} exceeds the model's {model.cfg.max_positions} positions", "ask for shorter windows"
        )
    tokenizer = _tokenizer(model)
    sizes = None if tokenizer is None else _byte_lengths(tokenizer)
    texts = {
        path: open_windows([path], length=length, vocab_size=model.cfg.vocab_size, tokenizer=tokenizer)
        for path in arguments.data
    }
    separator = document_separator(arguments.data, tokenizer) if arguments.within_documents else None
    nll = model.make_nll(arguments.batch, length, separator)
    results = {
        path: evaluate(nll, windows, batch_size=arguments.batch, first=arguments.windows, byte_lengths=sizes)
        for path, windows in texts.items()
    }
    print(evaluation_table(results))
    if arguments.output is not None:
        record = {
            "source": arguments.source,
            "backend": model.backend,
            "method": arguments.method,
            "bits": None if arguments.bits is None else float(arguments.bits),
            "granularity": arguments.granularity,
            "scale_init": arguments.scale_init,
            "length": length,
            "within_documents": arguments.within_documents,
            "texts": {path: _finite(dataclasses.asdict(result)) for path, result in results.items()},
        }
        _write(Path(arguments.output), json.dumps(record, indent=2, allow_nan=False) + "\n")
    return 0


def evaluation_table(results: Mapping[str, Evaluation]) -> str:
    """Returns one row a text."""

    def cells(name: str, result: Evaluation) -> Sequence[str]:
        error = "" if result.stderr is None else f"±{result.stderr:.4f}"
        size = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        return [name, f"{result.nll:.4f}", error, format_perplexity(result.perplexity), size, f"{result.tokens:,}"]

    headings = ["text", "nats/token", "stderr", "perplexity", "bits/byte", "tokens"]
    return table(headings, [cells(name, result) for name, result in results.items()])


def _tokenizer(model: Predictor) -> TextTokenizer | None:
    if "tokenizer.json" not in model.tokenizer_files:
        return None
    return TextTokenizer.load(model.tokenizer_files, vocab_size=model.cfg.vocab_size)


def _byte_lengths(tokenizer: TextTokenizer) -> NDArray[np.int64] | None:
    try:
        return byte_lengths(tokenizer)
    except TokenizerError as error:  # nats per token can be had all the same
        print(f"lowbit: no bits/byte: {error.cause}", file=sys.stderr)
        return None


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity, such as a perplexity beyond float64, nor NaN: both become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "write somewhere else") from error
    finally:
        partial.unlink(missing_ok=True)
