"""What evaluation asks of a model, whichever way it is computed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.llama import LlamaConfig

Nll = Callable[[NDArray[np.int32]], Any]
"""Tokens i32[b t+1] -> nats f[b t] of every token but each row's first."""
Scores = Callable[[NDArray[np.int32]], tuple[Any, Any]]
"""Tokens i32[b t+1] -> (nats as `Nll` gives them, likeliest token i[b t] in the place of each)."""
Logits = Callable[[NDArray[np.int32]], Any]
"""Tokens i32[b t] -> logits f[b t V]."""


class Predictor(NamedTuple):
    """A model that can be evaluated.

    Attributes:
      cfg: its sizes.
      tokenizer_files: by name; may be empty.
      backend: "jax", "integer" or "numpy".
      make_nll: takes (rows a batch, predictions a row, token that keeps documents apart or None).
      make_scores: takes rows a batch; t may differ from call to call.
      make_logits: takes rows a batch; t may differ from call to call.
    """

    cfg: LlamaConfig
    tokenizer_files: Mapping[str, bytes]
    backend: str
    make_nll: Callable[[int, int, int | None], Nll]
    make_scores: Callable[[int], Scores]
    make_logits: Callable[[int], Logits]
