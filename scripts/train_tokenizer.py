"""Train a byte-level BPE tokenizer on text and save it as a Hugging Face tokenizer folder.

The vocabulary is the end-of-text token (id 0), the 256 bytes, and as many merges as are left, so that its size is
exact and every text can be written. Training counts words and breaks ties by id: the same text gives the same file.

Example (the tokenizer of the quickstart's model, from the training files of three collections):
  python scripts/train_tokenizer.py --vocab-size 4096 --out assets/quickstart/model TEXT/*/train_*.jsonl.bz2
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lowbit.data.text import find_texts, read_documents

END_OF_TEXT = "<|endoftext|>"


def train(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE of exactly `vocab_size` tokens, the end-of-text token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise SystemExit(f"the text has merges for {tokenizer.get_vocab_size():,} tokens only: give more text")
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_positions: int) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        **special,
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", help="text, JSONL (.gz, .bz2) files, or folders of them")
    parser.add_argument("--vocab-size", type=int, default=4096, help="tokens, all included (default 4096)")
    parser.add_argument("--max-positions", type=int, default=1024, help="longest input of the model (default 1024)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    files = find_texts(args.text)
    save(train((d for f in files for d in read_documents(f)), args.vocab_size), args.out, args.max_positions)
    print(f"{args.out}: {args.vocab_size:,} tokens from {len(files)} files")


if __name__ == "__main__":
    main()
