"""How likely a model finds continuations of contexts, many at a time and in few shapes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import DataError
from lowbit.evals.predictor import Predictor

SHORTEST_BUCKET = 32


class Request(NamedTuple):
    """Tokens to be predicted, after tokens that are given; both hold at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """Natural logarithm of a continuation's probability, and whether each of its tokens is the likeliest one."""

    log_likelihood: float
    greedy: bool


@runtime_checkable
class Scorer(Protocol):
    """Whatever can say how likely continuations are: all that tasks and the harness need of a model."""

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """Returns one likelihood a request, in their order."""
        ...


class BatchScorer:
    """A scorer of any predictor.

    Requests are sorted by length and cut into batches of one size; a batch is padded to the next of the lengths 32,
    48, 64, 96, 128, ... so that a model compiles once for each of these. Padding stands behind the tokens, where causal
    attention does not see it.

    Attributes:
      predictor: the model.
      batch_size: rows a call; on a mesh, a multiple of the number of devices uses all of them.
      max_positions: longer requests lose tokens at the front.
    """

    def __init__(self, predictor: Predictor, batch_size: int):
        if batch_size < 1:
            raise DataError(f"batches of {batch_size} requests", "ask for at least 1")
        self.predictor = predictor
        self.batch_size = batch_size
        self.max_positions = predictor.cfg.max_positions
        self._scores = predictor.make_scores(batch_size)

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """Returns one likelihood a request, in their order; sums are in float64.

        A request of more than `max_positions` + 1 tokens keeps its last ones, as the harness cuts them.

        Raises:
          DataError: an empty context or continuation, or a continuation that leaves no place for any context.
        """
        for request in requests:
            _check(request, self.max_positions)
        rows = [(*context, *continuation)[-self.max_positions - 1 :] for context, continuation in requests]
        found: dict[int, Likelihood] = {}
        for chosen, tokens in _batches(rows, self.batch_size, self.max_positions):
            nll, top = (np.asarray(values) for values in self._scores(tokens))
            for row, index in enumerate(chosen):
                end = len(rows[index]) - 1  # predictions of this row that are no padding
                span = slice(end - len(requests[index].continuation), end)
                total = -float(nll[row, span].astype(np.float64).sum())
                found[index] = Likelihood(total, bool((top[row, span] == tokens[row, 1:][span]).all()))
        return [found[index] for index in range(len(requests))]

    def continue_greedily(
        self, contexts: Sequence[Sequence[int]], limit: int, is_done: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """Returns the likeliest continuation of each context, token by token.

        Each token costs a forward pass over all tokens before it: right for every backend, and meant for short answers.

        Args:
          contexts: tokens, at least one each.
          limit: longest continuation; contexts lose tokens at the front to make place for it.
          is_done: told a continuation so far, whether it ends there.

        Raises:
          DataError: an empty context, or a limit that leaves no place for any.
        """
        room = self.max_positions - limit
        if room < 1 or limit < 1:
            raise DataError(
                f"{limit} new tokens for a model of {self.max_positions} positions",
                "ask for at least 1, and for fewer than the model has positions",
            )
        if not all(contexts):
            raise DataError("a context without tokens", "begin with the token that stands between documents")
        rows = [list(context)[-room:] for context in contexts]
        starts = [len(row) for row in rows]
        open_rows = list(range(len(rows)))
        while open_rows:
            # A last token is asked for by standing in its place; which one stands there has no influence.
            asked = [(*rows[index], 0) for index in open_rows]
            for chosen, tokens in _batches(asked, self.batch_size, self.max_positions):
                top = np.asarray(self._scores(tokens)[1])
                for row, place in enumerate(chosen):
                    rows[open_rows[place]].append(int(top[row, len(asked[place]) - 2]))
            open_rows = [
                index
                for index in open_rows
                if len(rows[index]) - starts[index] < limit and not is_done(rows[index][starts[index] :])
            ]
        return [row[start:] for row, start in zip(rows, starts, strict=True)]


def bucket(predictions: int, most: int) -> int:
    """Returns the length that a row of so many predictions is padded to: 32, 48, 64, 96, ..., at most `most`."""
    size = SHORTEST_BUCKET
    while size < predictions:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, most)


def _batches(
    rows: Sequence[tuple[int, ...]], batch_size: int, most: int
) -> Iterator[tuple[list[int], NDArray[np.int32]]]:
    """Yields (indices of rows, tokens i32[batch_size t+1] that begin with them), longest first: memory ends early."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = np.zeros((batch_size, bucket(len(rows[chosen[0]]) - 1, most) + 1), np.int32)
        for row, index in enumerate(chosen):
            tokens[row, : len(rows[index])] = rows[index]
        yield chosen, tokens


def _check(request: Request, most: int) -> None:
    if not request.context or not request.continuation:
        raise DataError("a request without context or continuation", "give at least one token of each")
    if len(request.continuation) > most:
        raise DataError(
            f"a continuation of {len(request.continuation)} tokens for a model of {most} positions",
            "shorten it, or score it in windows",
        )
