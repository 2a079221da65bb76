import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = ["the cat sat on the mat, said the fox — naïve café", "the dog lay on the log\nand the cat sang", "12 日本"]


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory):
    """A byte-level BPE of 300 tokens with its separator at id 0."""
    folder = tmp_path_factory.mktemp("byte_level")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    assert backend.get_vocab_size() == 300
    backend.enable_truncation(3)  # as some published files do; it must not cut documents
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    return folder


@pytest.fixture(scope="session")
def byte_fallback_files():
    """A SentencePiece-like BPE as Llama 2 has it: specials, 256 byte tokens, pieces with U+2581 for a space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "t", "h", "e", "é", "▁t", "he"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[("▁", "t"), ("h", "e")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    config = json.dumps({"bos_token": "<s>"}).encode()
    return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": config}
