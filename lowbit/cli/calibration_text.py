"""The text that `quantize` and `allocate` calibrate on."""

from collections.abc import Sequence

from lowbit.data import TextTokenizer, open_windows
from lowbit.models.layerwise import LayerSource
from lowbit.ptq import Calibration, draw


def tokenizer_of(source: LayerSource) -> TextTokenizer | None:
    """Returns the tokenizer that belongs to a model; None for one without."""
    if "tokenizer.json" not in source.tokenizer_files:
        return None
    return TextTokenizer.load(source.tokenizer_files, vocab_size=source.cfg.vocab_size)


def calibration_of(source: LayerSource, data: Sequence[str], *, sequences: int, length: int, seed: int) -> Calibration:
    """Returns sequences of so many tokens, drawn from texts and token files; raises as `open_windows` and `draw`."""
    tokenizer = tokenizer_of(source)
    windows = open_windows(data, length=length, vocab_size=source.cfg.vocab_size, tokenizer=tokenizer)
    return draw(windows, sequences, seed, ", ".join(data))
