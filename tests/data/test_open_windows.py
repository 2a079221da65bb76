"""What a config names: token files, folders of shards, texts."""

import numpy as np
import pytest

from lowbit.data import (
    Manifest,
    TextTokenizer,
    TokenDataset,
    are_tokens,
    document_separator,
    encode_files,
    find_sources,
    open_windows,
    save_tokens,
    tokenize,
)
from lowbit.errors import DataError, TokenizerError


@pytest.fixture
def tokenizer(byte_level_folder):
    return TextTokenizer.load(byte_level_folder)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the cat sat on the mat " * 30)
    return str(path)


@pytest.fixture
def folder(tmp_path, text, tokenizer):
    return str(tokenize(find_sources([text]), tokenizer, tmp_path / "out", shard_tokens=50)["all"])


def opened(*paths, tokenizer, length=8, vocab_size=300):
    return open_windows(paths, length=length, vocab_size=vocab_size, tokenizer=tokenizer)


def test_texts_files_and_folders_give_the_same_tokens(tmp_path, text, folder, tokenizer):
    tokens = encode_files([text], tokenizer)
    save_tokens(tmp_path / "t.npy", tokens)
    of_text, of_file = opened(text, tokenizer=tokenizer), opened(str(tmp_path / "t.npy"), tokenizer=None)
    np.testing.assert_array_equal(of_text[:], of_file[:])
    shards = opened(folder, tokenizer=tokenizer)
    np.testing.assert_array_equal(np.concatenate(shards.arrays), tokens[: sum(map(len, shards.arrays))])
    assert all(isinstance(array, np.memmap) for array in shards.arrays)
    assert (are_tokens(text), are_tokens(folder), are_tokens("x.npy")) == (False, True, True)


def test_files_and_folders_go_together_and_texts_apart(tmp_path, text, folder, tokenizer):
    save_tokens(tmp_path / "t.npy", np.zeros(20, np.uint16))
    both = opened(str(tmp_path / "t.npy"), folder, tokenizer=tokenizer)
    assert len(both) == 2 + len(opened(folder, tokenizer=tokenizer))
    with pytest.raises(DataError, match=r"out holds tokens, among texts\n  -> give either"):
        opened(text, folder, tokenizer=tokenizer)


def test_a_last_shard_too_short_for_a_window_is_passed_over(folder, tokenizer):
    manifest = Manifest.read(folder)
    rest = manifest.shards[-1].tokens
    assert 0 < rest < 50
    windows = opened(folder, tokenizer=tokenizer, length=rest)
    assert len(windows.arrays) == len(manifest.shards) - 1
    with pytest.raises(DataError, match=r"no shard of .*out has the 51 tokens of a window"):
        opened(folder, tokenizer=tokenizer, length=50)


def test_batches_come_from_all_shards(folder, tokenizer):
    windows = opened(folder, tokenizer=tokenizer)
    data = TokenDataset(windows, 4)
    seen = {tuple(row) for step in range(-(-len(windows) // 4)) for row in data.batch(step).tolist()}
    assert seen == {tuple(window.tolist()) for window in windows}


def test_shards_of_another_tokenizer_and_texts_without_one_are_refused(text, folder, byte_fallback_files):
    other = TextTokenizer.load(byte_fallback_files, vocab_size=266)
    with pytest.raises(TokenizerError, match="another tokenizer than the model's"):
        opened(folder, tokenizer=other)
    with pytest.raises(TokenizerError, match=r"a\.txt is text, and the model has no tokenizer"):
        opened(text, tokenizer=None)
    with pytest.raises(TokenizerError, match="vocabulary of 300, the model 200"):
        opened(folder, tokenizer=None, vocab_size=200)
    with pytest.raises(DataError, match=r"a\.txt holds \d+ tokens, and a window of 999 needs at least"):
        opened(text, tokenizer=TextTokenizer.load(byte_fallback_files), length=999)


def test_the_separator_is_that_of_the_shards_or_of_the_tokenizer(text, folder, byte_level_folder, tmp_path):
    one = TextTokenizer.load(byte_level_folder, separator=1)
    assert document_separator([folder], None) == document_separator([folder, folder], one) == 0
    assert document_separator([text, "t.npy"], one) == 1
    with pytest.raises(TokenizerError, match="nothing says which token separates documents"):
        document_separator(["t.npy"], None)
    other = str(tokenize(find_sources([text]), one, tmp_path / "other")["all"])
    with pytest.raises(DataError, match=r"token 0 in .*out, by token 1 in .*other\n  -> tokenize them again"):
        document_separator([folder, other], None)
