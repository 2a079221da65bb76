"""Text in and out through the tokenizer of the packed file."""

import sys
from collections.abc import Callable

import numpy as np
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


def pieces_tokenizer(kind: str) -> bytes:
    """A SentencePiece-like tokenizer of 40 tokens: words that begin with a space, bytes for what has no piece."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "▁the",
        "▁ship",
        "s",
        "▁lay",
        ".",
        *(f"<0x{b:02X}>" for b in "日本".encode()),
    ]
    pieces = list(dict.fromkeys(pieces))
    vocab = {piece: i for i, piece in enumerate(pieces)} | {f"▁x{i}": i for i in range(len(pieces), 40)}
    model = models.Unigram([(piece, -1.0) for piece in vocab], unk_id=0, byte_fallback=True)
    library = Library(model)
    library.add_special_tokens(["<s>", "</s>"])
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    if kind == "metaspace":
        library.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="first")]
        )
    else:  # as Llama 2 has it
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    return library.to_str().encode()


TOKENIZERS = {
    "bytes": byte_tokenizer(TEXT),
    "metaspace": pieces_tokenizer("metaspace"),
    "strip": pieces_tokenizer("strip"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "words", [["the", " ship", " lay"], ["the ship", "  ", "lay."], ["ok", " 日本", " ok 日"]], ids=lambda w: "".join(w)
)
def test_a_continuation_keeps_its_first_space(make_packed: MakePacked, kind: str, words: list[str]) -> None:
    text = "".join(words)
    if kind == "bytes":
        file = byte_tokenizer(text)
    else:
        file = TOKENIZERS[kind]
        text = text.replace("ok", "the")
    tokenizer = Tokenizer(make_packed(tokenizer={"tokenizer.json": file}))
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    for cut in range(len(tokens) + 1):
        prompt = tokenizer.decode(tokens[:cut])
        if not prompt.endswith("\ufffd"):  # no prompt ends inside of a character
            assert prompt + "".join(tokenizer.stream(tokens[cut:], tokens[:cut])) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_tokens_are_streamed_as_they_are_decoded(make_packed: MakePacked, kind: str) -> None:
    tokenizer = Tokenizer(make_packed(tokenizer={"tokenizer.json": TOKENIZERS[kind]}))
    # Byte pieces stand last among the named ones; without them any sequence decodes piece by piece.
    high = 9 if kind != "bytes" else 40
    for seed in range(50):
        tokens = np.random.default_rng(seed).integers(0, high, 40).tolist()
        head, tail = tokens[:5], tokens[5:]
        prompt = tokenizer.decode(head)
        if not prompt.endswith("\ufffd"):
            assert prompt + "".join(tokenizer.stream(tail, head)) == tokenizer.decode(tokens)


def test_generated_text_begins_with_the_space_of_its_first_word(
    make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = make_packed(tokenizer={"tokenizer.json": pieces_tokenizer("strip")})
    tokenizer, runtime = Tokenizer(packed), Runtime(packed)
    monkeypatch.setattr(runtime, "generate", lambda *_, **__: iter(tokenizer.encode("ship lay")))
    assert list(generate_text(runtime, tokenizer, "the", 2)) == [" ship", " lay"]


def test_streaming_takes_linear_time(packed: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(packed)
    tokens = tokenizer.encode(TEXT) * 50
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda some: decoded.append(len(some)) or decode(some))
    assert "".join(tokenizer.stream(tokens, tokens)) == TEXT * 50
    # The context twice and, a token, at most a window of two characters and a character: 6 bytes and 3.
    assert sum(decoded) <= 2 * len(tokens) + 3 * 3 + 9 * len(tokens)


def test_truncation_and_padding_of_the_file_are_switched_off(make_packed: MakePacked) -> None:
    library = Library.from_str(byte_tokenizer(TEXT).decode())
    library.enable_truncation(max_length=4)
    library.enable_padding(length=64)
    tokenizer = Tokenizer(make_packed(tokenizer={"tokenizer.json": library.to_str().encode()}))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode(TEXT)) == len(TEXT.encode())


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
