"""Text and tokens as numpy arrays: what is read, in which order, and through which tokenizer."""

from lowbit.data.text import encode_documents, encode_files, read_documents, save_tokens
from lowbit.data.tokenizer import TextTokenizer, byte_lengths
from lowbit.data.tokens import TokenDataset, TokenWindows

__all__ = [
    "TextTokenizer",
    "TokenDataset",
    "TokenWindows",
    "byte_lengths",
    "encode_documents",
    "encode_files",
    "read_documents",
    "save_tokens",
]
