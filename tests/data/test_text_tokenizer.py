import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.data import TextTokenizer, byte_lengths
from lowbit.errors import TokenizerError


def test_loads_a_folder_a_file_and_bytes_alike(byte_level_folder):
    by_name = {p.name: p.read_bytes() for p in byte_level_folder.iterdir()}
    for source in (byte_level_folder, byte_level_folder / "tokenizer.json", by_name):
        tokenizer = TextTokenizer.load(source, vocab_size=300)
        assert (tokenizer.vocab_size, tokenizer.separator) == (300, 0)


def test_truncation_in_the_file_does_not_cut_documents(byte_level_folder):
    tokenizer = TextTokenizer.load(byte_level_folder)
    text = "the cat sat on the mat " * 20
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_bos_separates_where_there_is_no_eos_and_a_wanted_token_wins(byte_fallback_files, byte_level_folder):
    assert TextTokenizer.load(byte_fallback_files).separator == 1
    assert TextTokenizer.load(byte_fallback_files, separator="</s>").separator == 2
    assert TextTokenizer.load(byte_level_folder, separator=0).separator == 0


@given(text=st.text(max_size=40))
@settings(deadline=None)
def test_byte_lengths_of_a_byte_level_tokenizer_sum_to_the_text(byte_level_folder, text):
    tokenizer = TextTokenizer.load(byte_level_folder)
    assert byte_lengths(tokenizer)[np.asarray(tokenizer.encode([text])[0], np.int64)].sum() == len(text.encode())


@given(text=st.text(alphabet="the éx日\n", max_size=40))
@settings(deadline=None)
def test_byte_lengths_of_a_byte_fallback_tokenizer_sum_to_the_text(byte_fallback_files, text):
    tokenizer = TextTokenizer.load(byte_fallback_files)
    assert byte_lengths(tokenizer)[np.asarray(tokenizer.encode([text])[0], np.int64)].sum() == len(text.encode())


def test_special_tokens_and_padding_rows_stand_for_no_bytes(byte_level_folder):
    lengths = byte_lengths(TextTokenizer.load(byte_level_folder, vocab_size=304))
    assert lengths.shape == (304,)
    assert lengths[0] == 0
    assert (lengths[300:] == 0).all()
    assert (lengths[1:300] > 0).all()


def test_an_added_token_that_is_no_special_counts_as_text(byte_level_folder):
    backend = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    backend.add_tokens(["naïve!"])
    tokenizer = TextTokenizer.load({"tokenizer.json": backend.to_str().encode()}, separator=0)
    assert byte_lengths(tokenizer)[300] == 7


def test_a_tokenizer_without_bytes_has_no_byte_lengths():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>"))
    tokenizer = TextTokenizer.load({"tokenizer.json": backend.to_str().encode()}, separator="<unk>")
    with pytest.raises(TokenizerError, match=r"WordLevel tokenizer without bytes.*\n  -> report nats per token"):
        byte_lengths(tokenizer)


@pytest.mark.parametrize("size", [299, 307, 49152])
def test_a_tokenizer_of_another_model_is_refused(byte_level_folder, size):
    # 307 rows: seven of them without a token are more than 2 % of the table
    with pytest.raises(TokenizerError, match=rf"has 300 tokens, the model's vocabulary {size:,}\n  -> use the token"):
        TextTokenizer.load(byte_level_folder, vocab_size=size)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer at .*tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match=r"no tokenizer at .*else\.json"):
        TextTokenizer.load(tmp_path / "else.json")
    with pytest.raises(TokenizerError, match=r"comes without tokenizer\.json"):
        TextTokenizer.load({"vocab.txt": b""})


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(content):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer.load({"tokenizer.json": content})


def test_an_empty_tokenizer_is_refused():
    empty = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str().encode()
    with pytest.raises(TokenizerError, match="holds no tokens"):
        TextTokenizer.load({"tokenizer.json": empty})


def test_a_separator_that_is_unknown_is_refused(byte_level_folder):
    files = {"tokenizer.json": (byte_level_folder / "tokenizer.json").read_bytes()}
    with pytest.raises(TokenizerError, match="does not say which token ends a document"):
        TextTokenizer.load(files)
    with pytest.raises(TokenizerError, match="has no token '<end>'"):
        TextTokenizer.load(files, separator="<end>")
    with pytest.raises(TokenizerError, match="has no token 300"):
        TextTokenizer.load(files, separator=300)
    files["tokenizer_config.json"] = json.dumps({"eos_token": "</s>"}).encode()
    with pytest.raises(TokenizerError, match="has no token '</s>'"):
        TextTokenizer.load(files)
    files["tokenizer_config.json"] = b"{eos"
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json beside .* cannot be read"):
        TextTokenizer.load(files)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[1]", "does not hold a JSON object"),
        (b'{"eos_token": 5}', "names 5 as the end of a document"),
        (b'{"eos_token": {"content": ["a"]}}', r"names \['a'\] as the end"),
        (b'{"eos_token": {"text": "a"}}', "does not say which token ends a document"),
    ],
)
def test_an_odd_tokenizer_config_is_named(byte_level_folder, config, message):
    files = {
        "tokenizer.json": (byte_level_folder / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": config,
    }
    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.load(files)


def test_fingerprint_is_of_tokens_and_merges_and_not_of_their_spelling(byte_level_folder):
    text = (byte_level_folder / "tokenizer.json").read_bytes()
    own = TextTokenizer.load(byte_level_folder).fingerprint()
    spec = json.loads(text)
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    spec["truncation"] = spec["post_processor"] = None
    assert TextTokenizer.load({"tokenizer.json": json.dumps(spec).encode()}, separator=1).fingerprint() == own
    other = json.loads(text)
    other["model"]["merges"][:2] = other["model"]["merges"][1::-1]
    swapped = json.loads(text)
    a, b = list(swapped["model"]["vocab"])[40:42]
    vocab = swapped["model"]["vocab"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    prints = [
        TextTokenizer.load({"tokenizer.json": json.dumps(s).encode()}, separator=0).fingerprint()
        for s in (other, swapped)
    ]
    assert len({own, *prints}) == 3
