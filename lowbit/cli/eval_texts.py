"""The texts of `eval`: how well one model predicts them, or two."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.cli.tables import table
from lowbit.cli.usage import UsageError
from lowbit.data import TextTokenizer, are_tokens, byte_lengths, document_separator, open_windows
from lowbit.errors import TokenizerError
from lowbit.evals import Agreement, Evaluation, PairedTest, compare_models, paired_test
from lowbit.evals.batches import Windows
from lowbit.evals.perplexity import WindowSums, summarize, window_sums
from lowbit.evals.predictor import Predictor
from lowbit.evals.windows import PAPERS_LENGTH, OverlappingWindows, papers_windows
from lowbit.report.table import format_perplexity

LONGEST_WINDOW = 1024
"""Unless --length asks for more."""


class Cut(NamedTuple):
    """How texts are cut into windows: tokens fed at a time, and how many predictions are new, None for all."""

    length: int
    counted: int | None


class TextResult(NamedTuple):
    """A model on a text; beside another model, how far apart they are (`nats` is this model's minus the other's)."""

    evaluation: Evaluation
    agreement: Agreement | None = None
    nats: PairedTest | None = None


def cut_of(arguments: argparse.Namespace, model: Predictor) -> Cut:
    """Returns how the flags cut texts for a model.

    Raises:
      UsageError: windows longer than the model's positions, or flags that do not go together.
    """
    papers = arguments.protocol == "papers"
    if papers and (arguments.stride or arguments.within_documents):
        raise UsageError("--protocol papers cuts windows in its own way", "leave out --stride and --within-documents")
    if papers:
        length = (arguments.length or PAPERS_LENGTH) - 1
    else:
        length = arguments.length or min(model.cfg.max_positions, LONGEST_WINDOW)
    if length > model.cfg.max_positions:
        raise UsageError(
            f"--length {arguments.length or PAPERS_LENGTH} exceeds the model's {model.cfg.max_positions} positions",
            "ask for shorter windows",
        )
    return Cut(length, arguments.stride)


def open_texts(
    arguments: argparse.Namespace, cut: Cut, model: Predictor, tokenizer: TextTokenizer | None
) -> dict[str, Windows]:
    """Returns the windows of each --data by its path.

    Raises:
      UsageError: tokens where text is needed.
      DataError, TokenizerError: as `lowbit.data.open_windows`.
    """
    if arguments.protocol == "papers":
        return {path: _papers(path, cut, tokenizer) for path in arguments.data}
    texts: dict[str, Windows] = {}
    for path in arguments.data:
        windows = open_windows([path], length=cut.length, vocab_size=model.cfg.vocab_size, tokenizer=tokenizer)
        if cut.counted is None:
            texts[path] = windows
        elif len(windows.arrays) > 1:
            raise UsageError(f"--stride on {path}, which has {len(windows.arrays)} shards", "give one file")
        else:
            texts[path] = OverlappingWindows(windows.arrays[0], cut.length, cut.counted)
    return texts


def evaluate_texts(
    arguments: argparse.Namespace, model: Predictor, other: Predictor | None, tokenizer: TextTokenizer | None
) -> dict[str, TextResult]:
    """Returns one result a text; with another model, also how the first one differs from it."""
    cut = cut_of(arguments, model)
    texts = open_texts(arguments, cut, model, tokenizer)
    sizes = None if tokenizer is None else _byte_lengths(tokenizer)
    separator = document_separator(arguments.data, tokenizer) if arguments.within_documents else None

    def sums(predictor: Predictor) -> dict[str, WindowSums]:
        nll = predictor.make_nll(arguments.batch, cut.length, separator)
        return {
            path: window_sums(nll, windows, arguments.batch, arguments.windows, sizes, cut.counted)
            for path, windows in texts.items()
        }

    found = sums(model)
    if other is None:
        return {path: TextResult(summarize(each)) for path, each in found.items()}
    theirs = sums(other)
    logits = other.make_logits(1), model.make_logits(1)  # one window's logits are hundreds of megabytes
    return {
        path: TextResult(
            summarize(each),
            compare_models(*logits, texts[path], batch_size=1, first=arguments.windows),
            paired_test(each.nats / each.predictions, theirs[path].nats / theirs[path].predictions),
        )
        for path, each in found.items()
    }


def evaluation_table(results: Mapping[str, Evaluation]) -> str:
    """Returns one row a text."""

    def cells(name: str, result: Evaluation) -> list[str]:
        error = "" if result.stderr is None else f"±{result.stderr:.4f}"
        size = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        return [name, f"{result.nll:.4f}", error, format_perplexity(result.perplexity), size, f"{result.tokens:,}"]

    headings = ["text", "nats/token", "stderr", "perplexity", "bits/byte", "tokens"]
    return table(headings, [cells(name, result) for name, result in results.items()])


def fidelity_table(results: Mapping[str, TextResult]) -> str:
    """Returns one row a text: how far the model is from the other one."""
    rows = []
    for name, (_, agreement, nats) in results.items():
        assert agreement is not None
        assert nats is not None
        errors = ["" if error is None else f" ±{error:.4f}" for error in (agreement.kl_stderr, agreement.top1_stderr)]
        rows.append(
            [
                name,
                f"{agreement.kl:.4f}{errors[0]}",
                f"{agreement.top1:.4f}{errors[1]}",
                f"{nats.difference:+.4f}",
                f"{nats.low:+.4f} to {nats.high:+.4f}",
                f"{nats.p_value:.4f}",
            ]
        )
    return table(["text", "KL", "same top token", "nats more", "95 %", "p"], rows)


def text_record(result: TextResult) -> dict[str, Any]:
    """Returns a result as JSON has it, the figures of the evaluation first."""
    record = dataclasses.asdict(result.evaluation)
    if result.agreement is not None and result.nats is not None:
        record["against"] = {
            "agreement": dataclasses.asdict(result.agreement),
            "nats": dataclasses.asdict(result.nats),
        }
    return record


def _papers(path: str, cut: Cut, tokenizer: TextTokenizer | None) -> NDArray[np.int32]:
    if tokenizer is None or are_tokens(path):
        raise UsageError(
            f"--protocol papers reads text, and {path} or the model gives none",
            "give wiki.test.raw, and a model with its tokenizer",
        )
    return papers_windows(path, tokenizer, cut.length + 1)


def _byte_lengths(tokenizer: TextTokenizer) -> NDArray[np.int64] | None:
    try:
        return byte_lengths(tokenizer)
    except TokenizerError as error:  # nats per token can be had all the same
        print(f"lowbit: no bits/byte: {error.cause}", file=sys.stderr)
        return None
