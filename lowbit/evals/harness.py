"""lm-evaluation-harness on lowbit's models: the extra `harness`. Imported by nothing else in the package.

The harness makes prompts, counts answers and knows hundreds of tasks; here it asks for likelihoods and short texts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lowbit.data import TextTokenizer
from lowbit.errors import ConfigError, TokenizerError
from lowbit.evals.encoding import first_token
from lowbit.evals.predictor import Predictor
from lowbit.evals.scoring import BatchScorer, Request

NEW_TOKENS = 256
"""Of a generated text whose task does not say how many."""


class HarnessModel(TemplateLM):
    """A model as lm-evaluation-harness 0.4 takes it.

    Args:
      predictor: float, fake-quantized or packed, of either backend.
      batch_size: rows a call.

    Raises:
      TokenizerError: the model comes without a tokenizer.
    """

    backend: ClassVar[str] = "causal"

    def __init__(self, predictor: Predictor, batch_size: int = 8):
        super().__init__()
        if "tokenizer.json" not in predictor.tokenizer_files:
            raise TokenizerError("the harness needs text, and the model has no tokenizer", "save it with its tokenizer")
        self.text = TextTokenizer.load(predictor.tokenizer_files, vocab_size=predictor.cfg.vocab_size)
        self.scorer = BatchScorer(predictor, batch_size)
        self.prefix = first_token(predictor.cfg, self.text)

    @property
    def eot_token_id(self) -> int:
        """The token behind a document."""
        return self.text.separator

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self.prefix

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's caches apart by the tokenizer's content."""
        return self.text.fingerprint()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the ids of a text; None adds the special tokens that `tokenizer.json` itself asks for."""
        special = True if add_special_tokens is None else add_special_tokens
        return list(self.text.backend.encode(string, add_special_tokens=special).ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return [(found.log_likelihood, found.greedy) for found in self.scorer.log_likelihoods(asked)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each whole text, in windows of the model's length that do not overlap."""
        asked: list[Request] = []
        counts = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix, self.scorer.max_positions, context_len=1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            asked += [Request(tuple(context), tuple(continuation)) for context, continuation in pairs]
            counts.append(len(pairs))
        found = iter(self.scorer.log_likelihoods(asked))
        return [sum((next(found).log_likelihood for _ in range(count)), start=0.0) for count in counts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the likeliest text after each context, up to the first of its task's stop strings.

        Raises:
          ConfigError: a task asks for anything else than greedy decoding.
        """
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: Mapping[str, Any]) -> str:
        _check_greedy(settings)
        stops = [settings["until"]] if isinstance(settings.get("until"), str) else list(settings.get("until") or [])
        limit = next((settings[name] for name in ("max_gen_toks", "max_new_tokens") if name in settings), NEW_TOKENS)

        def is_done(tokens: list[int]) -> bool:
            return tokens[-1] == self.eot_token_id or any(stop in self.text.decode(tokens) for stop in stops)

        tokens = self.tok_encode(context) or [self.prefix]
        (new,) = self.scorer.continue_greedily([tokens], int(limit), is_done)
        return _up_to(self.text.decode(new), stops)


def _check_greedy(settings: Mapping[str, Any]) -> None:
    """`temperature: 0` and `do_sample: false` say greedy, and many tasks say both."""
    if settings.get("do_sample", False) or settings.get("num_beams", 1) != 1:
        raise ConfigError(f"the task wants {dict(settings)}", "only greedy decoding is there: set do_sample to false")


def _up_to(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text
