"""Turn text into a token file for training: documents shuffled by a seed, each followed by the separator token.

Example:
  python scripts/tokenize_text.py --tokenizer assets/quickstart/model --shuffle-seed 0 \\
      --exclude assets/quickstart/text/valid.jsonl --out train.npy TEXT/*/train_*.jsonl.bz2
"""

import argparse
from pathlib import Path

import numpy as np

from lowbit.data.text import encode_documents, find_texts, read_documents, save_tokens
from lowbit.data.tokenizer import TextTokenizer, byte_lengths


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", help="text, JSONL (.gz, .bz2) files, or folders of them")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json or the folder that holds it")
    parser.add_argument("--exclude", nargs="*", default=[], help="files whose documents are left out (held-out text)")
    parser.add_argument("--shuffle-seed", type=int, help="order of the documents (default: as they come)")
    parser.add_argument("--out", type=Path, required=True, help="token file to write (.npy, uint16 or uint32)")
    args = parser.parse_args()
    tokenizer = TextTokenizer.load(args.tokenizer)
    held_out = {d for f in find_texts(args.exclude) for d in read_documents(f)}
    documents = [d for f in find_texts(args.text) for d in read_documents(f)]
    kept = [d for d in documents if d not in held_out]
    if args.shuffle_seed is not None:
        kept = [kept[i] for i in np.random.default_rng(args.shuffle_seed).permutation(len(kept))]
    tokens = encode_documents(kept, tokenizer)
    save_tokens(args.out, tokens)
    size = int(byte_lengths(tokenizer)[tokens].sum())
    print(
        f"{args.out}: {len(tokens):,} {tokens.dtype} tokens of {len(kept):,} documents "
        f"({len(documents) - len(kept)} left out), {size:,} bytes, {size / len(tokens):.3f} bytes/token"
    )


if __name__ == "__main__":
    main()
