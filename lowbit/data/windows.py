"""From what a config or a command line names, token files, folders of shards or texts, to windows."""

from collections.abc import Sequence
from pathlib import Path

from lowbit.data.manifest import Manifest, is_token_folder
from lowbit.data.text import encode_files
from lowbit.data.tokenizer import TextTokenizer
from lowbit.data.tokens import TokenWindows, open_tokens
from lowbit.errors import DataError, TokenizerError


def are_tokens(path: str) -> bool:
    """Whether a path is a `.npy` token file or a folder of token shards; anything else is text."""
    return path.endswith(".npy") or is_token_folder(path)


def open_windows(
    paths: Sequence[str], *, length: int, vocab_size: int, tokenizer: TextTokenizer | None
) -> TokenWindows:
    """Returns windows over token files and folders, or over texts that are encoded now and held in memory.

    A shard too short for a window is passed over, as long as its folder has one that is not.

    Args:
      paths: `.npy` files and folders that `tokenize` wrote; or text files and folders of them.
      length: T, predictions in a window.
      vocab_size: rows of the model's embedding table.
      tokenizer: the model's, which token folders are compared with; None where it comes without one.

    Raises:
      DataError: a path is missing, too short or damaged, or there are tokens among texts.
      TokenizerError: texts for a model without a tokenizer, or token shards of another one.
    """
    tokens = [path for path in paths if are_tokens(path)]
    if not tokens:
        return _encoded(paths, length, tokenizer)
    if len(tokens) < len(paths):
        raise DataError(f"{tokens[0]} holds tokens, among texts", "give either tokens or texts")
    arrays, names = [], []
    for path in paths:
        if is_token_folder(path):
            manifest = Manifest.read(path)
            manifest.check_tokenizer(path, vocab_size, tokenizer)
            found = list(zip(manifest.open(path), manifest.shards, strict=True))
            long = [(array, shard) for array, shard in found if len(array) > length]
            if not long:
                raise DataError(
                    f"no shard of {path} has the {length + 1:,} tokens of a window ({manifest.tokens:,} in all)",
                    "give more text or a smaller window",
                )
            arrays += [array for array, _ in long]
            names += [str(Path(path) / shard.file) for _, shard in long]
        else:
            arrays.append(open_tokens(Path(path), vocab_size))
            names.append(path)
    return TokenWindows(tuple(arrays), length, tuple(names))


def document_separator(paths: Sequence[str], tokenizer: TextTokenizer | None) -> int:
    """Returns the token that stands between the documents of some data, as the folders of shards or the tokenizer say.

    Args:
      paths: as `open_windows` takes them.
      tokenizer: of texts and `.npy` files.

    Raises:
      TokenizerError: nobody says.
      DataError: two say different ones.
    """
    stated = {path: Manifest.read(path).separator for path in paths if is_token_folder(path)}
    if not set(paths) <= stated.keys():
        if tokenizer is None:
            raise TokenizerError("nothing says which token separates documents", "name it, or give a tokenizer")
        stated["the tokenizer"] = tokenizer.separator
    if len(set(stated.values())) != 1:
        raise DataError(
            "documents are separated by " + ", by ".join(f"token {token} in {path}" for path, token in stated.items()),
            "tokenize them again with one separator",
        )
    return next(iter(stated.values()))


def _encoded(paths: Sequence[str], length: int, tokenizer: TextTokenizer | None) -> TokenWindows:
    if tokenizer is None:
        raise TokenizerError(
            f"{paths[0]} is text, and the model has no tokenizer", "set model.tokenizer of a run, or give .npy tokens"
        )
    return TokenWindows((encode_files(paths, tokenizer),), length, (", ".join(paths),))
