"""Folders of shards, read: sizes at once, hashes when asked, and the tokenizer against the model's."""

import json

import numpy as np
import pytest

from lowbit.data import Manifest, TextTokenizer, find_sources, tokenize
from lowbit.errors import DataError, TokenizerError


@pytest.fixture
def tokenizer(byte_level_folder):
    return TextTokenizer.load(byte_level_folder)


@pytest.fixture
def folder(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 20)
    return tokenize(find_sources([str(tmp_path / "a.txt")]), tokenizer, tmp_path / "out", shard_tokens=50)["all"]


def change(folder, **changes):
    place = folder / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def test_what_is_written_is_read(folder, tmp_path):
    manifest = Manifest.read(folder)
    (tmp_path / "copy").mkdir()
    manifest.write(tmp_path / "copy")
    assert Manifest.read(tmp_path / "copy") == manifest
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_a_cut_shard_is_found_when_the_folder_is_opened(folder):
    shard = folder / "shard-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"shard-00001\.npy is 226 bytes long, and was written with 228 bytes"):
        Manifest.read(folder).open(folder)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.npy is missing, and was written with"):
        Manifest.read(folder).open(folder)


def test_a_shard_of_other_tokens_is_found_by_its_hash(folder):
    shard = folder / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    manifest = Manifest.read(folder)
    manifest.open(folder)
    with pytest.raises(DataError, match=r"shard-00000\.npy was changed after it was written"):
        manifest.verify(folder)


def test_a_shard_of_equal_size_and_another_form_is_no_shard(folder):
    size = (folder / "shard-00000.npy").stat().st_size
    np.save(folder / "shard-00000.npy", np.zeros(25, np.uint32))
    assert (folder / "shard-00000.npy").stat().st_size == size
    with pytest.raises(DataError, match=r"shard-00000\.npy holds 25 tokens, not 50"):
        Manifest.read(folder).open(folder)


def test_another_tokenizer_than_the_model_s_is_refused(folder, tokenizer, byte_fallback_files):
    manifest = Manifest.read(folder)
    manifest.check_tokenizer(folder, 300, tokenizer)
    manifest.check_tokenizer(folder, 320, None)
    other = TextTokenizer.load(byte_fallback_files)
    with pytest.raises(TokenizerError, match=r"out was made with another tokenizer than the model's\n  -> tokenize"):
        manifest.check_tokenizer(folder, 300, other)
    with pytest.raises(TokenizerError, match="tokens of a vocabulary of 300, the model 299"):
        manifest.check_tokenizer(folder, 299, None)


def test_a_folder_without_a_manifest_is_not_finished(tmp_path):
    with pytest.raises(DataError, match=r"holds no manifest\.json: it is no finished folder of tokens"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not the manifest of a folder of tokens"),
        ({"version": 2}, "is of version 2, and this lowbit reads 1"),
        ({"tokens": "many"}, "does not say what it must: tokens is 'many'"),
        ({"tokens": 1}, "do not add up"),
        ({"shards": [{"file": "a"}]}, "does not say what it must"),
        ({"shards": 5}, "does not say what it must"),
        ({"shards": [{"file": "../a", "tokens": 141, "size": 1, "sha256": ""}]}, "outside of the folder"),
        ({"further": 1}, "does not say what it must"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, changes, message):
    if "../a" in str(changes):
        changes["shards"][0]["tokens"] = Manifest.read(folder).tokens
    change(folder, **changes)
    with pytest.raises(DataError, match=message):
        Manifest.read(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[]", "is not the manifest")])
def test_a_damaged_manifest_is_refused(folder, content, message):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Manifest.read(folder)
