"""What a run reads: windows of its texts, through its tokenizer, and the token between their documents."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowbit.config import ConfigDict
from lowbit.data import TextTokenizer, TokenWindows, are_tokens, byte_lengths, document_separator, open_windows
from lowbit.data.manifest import is_token_folder
from lowbit.errors import ConfigError, DataError, TokenizerError


class Texts(NamedTuple):
    """The data of a run.

    Attributes:
      train: windows to train on.
      valid: windows of each text to evaluate on, by name.
      byte_lengths: UTF-8 bytes of each token, None without a tokenizer or with one that can lose text.
      separator: token between the documents of a window, if they are to be kept apart; None if not.
    """

    train: TokenWindows
    valid: Mapping[str, TokenWindows]
    byte_lengths: np.ndarray | None
    separator: int | None


def check_names(train: Sequence[str], valid: Sequence[str]) -> None:
    """Raises ConfigError where there is nothing to train on, or two texts would have one name."""
    if not train:
        raise ConfigError("data.train names no file", "set --config.data.train=FILE[,FILE] (.npy tokens, or text)")
    names = [Path(path).stem for path in valid]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"data.valid names two files called {twice[0]!r}", "results go by file name: rename one")


def open_texts(config: ConfigDict, vocab_size: int, tokenizer_files: Mapping[str, bytes]) -> Texts:
    """Opens what the section `data` names, for a model of `vocab_size` rows with these tokenizer files.

    Raises:
      TokenizerError: texts without a tokenizer, tokens of another, or nobody knows what separates documents.
      DataError: a file is missing, damaged or too short.
    """
    train_names, valid_names = _expanded(config.data.train), _expanded(config.data.valid)
    tokenizer = _tokenizer(config, vocab_size, tokenizer_files, train_names + valid_names)

    def windows(names: Sequence[str]) -> TokenWindows:
        return open_windows(names, length=config.train.sequence_length, vocab_size=vocab_size, tokenizer=tokenizer)

    train = windows(train_names)
    valid = {Path(path).stem: windows((path,)) for path in valid_names}
    for name, text in valid.items():
        if len(text) < config.evaluation.windows:
            raise DataError(
                f"evaluation.windows={config.evaluation.windows}, and the text {name!r} has {len(text)}",
                "lower evaluation.windows (0 takes all), or give more text",
            )
    separator = None
    if not config.data.attend_across_documents:
        separator = _separator(config, vocab_size, tokenizer, train_names + valid_names)
    return Texts(train, valid, _byte_lengths(tokenizer), separator)


def _expanded(names: Sequence[str]) -> tuple[str, ...]:
    """The paths with a home folder in place of a tilde, which no shell expands behind `--config.data.train=`."""
    return tuple(str(Path(name).expanduser()) if name.startswith("~") else name for name in names)


def _separator(config: ConfigDict, vocab_size: int, tokenizer: TextTokenizer | None, names: Sequence[str]) -> int:
    settings = config.data
    if not isinstance(settings.separator, int):
        return document_separator(names, tokenizer)
    if not 0 <= settings.separator < vocab_size:
        raise ConfigError(f"data.separator={settings.separator}", f"give a token from 0 to {vocab_size - 1:,}")
    return settings.separator


def _tokenizer(
    config: ConfigDict, vocab_size: int, files: Mapping[str, bytes], names: Sequence[str]
) -> TextTokenizer | None:
    if "tokenizer.json" not in files:
        return None
    settings = config.data
    # Token folders say which token separates documents, and nobody asks it of files of tokens as long as documents see
    # each other: any id will do then.
    answered = is_token_folder if not settings.attend_across_documents else are_tokens
    unasked = all(map(answered, names))
    separator = settings.separator if settings.separator != "" else 0 if unasked else None
    return TextTokenizer.load(files, vocab_size=vocab_size, separator=separator)


def _byte_lengths(tokenizer: TextTokenizer | None) -> np.ndarray | None:
    try:
        return None if tokenizer is None else byte_lengths(tokenizer)
    except TokenizerError:  # one without bytes: nats per token can be reported all the same
        return None
