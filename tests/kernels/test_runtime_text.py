"""Text in and out through the tokenizer of the packed file."""

import sys
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from lowbit.errors import DataError, TokenizerError
from lowbit.formats import PackedModel
from lowbit.kernels import Runtime, Tokenizer, generate_text

MakePacked = Callable[..., PackedModel]


def byte_tokenizer(text: str, size: int = 40) -> bytes:
    """A byte-level tokenizer without merges over the bytes of a text: a character may take several tokens."""
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    symbols = sorted({symbol for piece, _ in alphabet for symbol in piece})
    vocab = {f"<{i}>": i for i in range(size - len(symbols))}
    vocab |= {symbol: len(vocab) + i for i, symbol in enumerate(symbols)}
    library = Library(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library.to_str().encode()


TEXT = "naïve 日本 – ok"


@pytest.fixture
def packed(make_packed: MakePacked) -> PackedModel:
    return make_packed(tokenizer={"tokenizer.json": byte_tokenizer(TEXT)})


def test_text_survives_the_round_trip(packed: PackedModel) -> None:
    tokenizer = Tokenizer(packed)
    tokens = tokenizer.encode(TEXT)
    assert len(tokens) == len(TEXT.encode())
    assert tokenizer.decode(tokens) == TEXT


def test_a_character_over_several_tokens_is_streamed_whole(packed: PackedModel) -> None:
    tokenizer = Tokenizer(packed)
    pieces = list(tokenizer.stream(iter(tokenizer.encode(TEXT))))
    assert pieces == list(TEXT)


def test_a_text_cut_inside_a_character_still_ends(packed: PackedModel) -> None:
    tokenizer = Tokenizer(packed)
    tokens = tokenizer.encode("ok日")[:-1]
    assert "".join(tokenizer.stream(iter(tokens))) == tokenizer.decode(tokens)


def test_generated_text_is_that_of_the_generated_tokens(packed: PackedModel) -> None:
    runtime, tokenizer = Runtime(packed), Tokenizer(packed)
    tokens = list(runtime.generate(tokenizer.encode("ok"), 12, temperature=1.0, seed=3))
    text = "".join(generate_text(runtime, tokenizer, "ok", 12, temperature=1.0, seed=3))
    assert text == tokenizer.decode(tokens)
    assert text


def test_an_empty_prompt_starts_from_bos(packed: PackedModel) -> None:
    runtime, tokenizer = Runtime(packed), Tokenizer(packed)
    tokens = list(runtime.generate([1], 8, temperature=1.0, stop_tokens=()))
    text = "".join(generate_text(runtime, tokenizer, "", 8, temperature=1.0, stop_tokens=()))
    assert text == tokenizer.decode(tokens)

    packed.config["bos_token_id"] = None
    with pytest.raises(DataError, match="the prompt is empty and the model has no bos token"):
        generate_text(Runtime(packed), tokenizer, "", 8)


def test_a_file_without_a_tokenizer_is_named(make_packed: MakePacked) -> None:
    with pytest.raises(TokenizerError, match=r"holds no tokenizer.json\n  -> export it from a folder"):
        Tokenizer(make_packed())


@pytest.mark.parametrize("content", [b"{}", b"\xff", b""])
def test_a_tokenizer_that_cannot_be_read_is_refused(make_packed: MakePacked, content: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json in the packed model cannot be read"):
        Tokenizer(make_packed(tokenizer={"tokenizer.json": content}))


def test_a_tokenizer_of_another_model_is_refused(make_packed: MakePacked) -> None:
    with pytest.raises(TokenizerError, match="the tokenizer has 41 tokens, the model 40"):
        Tokenizer(make_packed(tokenizer={"tokenizer.json": byte_tokenizer(TEXT, size=41)}))


def test_without_the_tokenizers_package_the_mend_is_named(packed: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"not installed\n  -> pip install tokenizers"):
        Tokenizer(packed)
