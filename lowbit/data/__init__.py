"""Text and tokens as numpy arrays: what is read, in which order, and through which tokenizer."""

from lowbit.data.manifest import Manifest
from lowbit.data.sources import find_sources
from lowbit.data.text import encode_documents, encode_files, read_documents, save_tokens
from lowbit.data.tokenization import tokenize
from lowbit.data.tokenizer import TextTokenizer, byte_lengths
from lowbit.data.tokens import TokenDataset, TokenWindows
from lowbit.data.windows import are_tokens, document_separator, open_windows

__all__ = [
    "Manifest",
    "TextTokenizer",
    "TokenDataset",
    "TokenWindows",
    "are_tokens",
    "byte_lengths",
    "document_separator",
    "encode_documents",
    "encode_files",
    "find_sources",
    "open_windows",
    "read_documents",
    "save_tokens",
    "tokenize",
]
