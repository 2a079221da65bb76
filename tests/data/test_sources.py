"""Where documents come from: rows under any field, Parquet, data sets, and reading on from any place."""

import builtins
import gzip
import json

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from lowbit.data import find_sources, read_documents
from lowbit.data.hub import HubDataset
from lowbit.data.sources import TextFile
from lowbit.errors import DataError

TEXTS = [f"document {number}: naïve 日本" for number in range(10)]


@pytest.fixture
def parquet(tmp_path):
    def write(texts=TEXTS, name="a.parquet", column="text", kind=None):
        table = pyarrow.table({"id": list(range(len(texts))), column: pyarrow.array(texts, kind)})
        pyarrow.parquet.write_table(table, tmp_path / name, row_group_size=3)
        return tmp_path / name

    return write


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({"content": text}) for text in TEXTS]
    path.write_bytes(gzip.compress("\n\n".join(lines).encode()))
    return path


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_a_column_is_read_as_documents(parquet, kind):
    assert list(read_documents(parquet(kind=kind))) == TEXTS
    assert list(read_documents(parquet(column="content", kind=kind), "content")) == TEXTS
    dictionary = pyarrow.array(TEXTS).dictionary_encode()
    assert list(read_documents(parquet(texts=dictionary))) == TEXTS


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6, 9, 10])
def test_reading_on_from_any_document_gives_the_rest(parquet, rows, start):
    for source in (TextFile(parquet(), "text"), TextFile(rows, "content")):
        read = list(source.documents(start))
        assert [text for text, _ in read] == TEXTS[start:]
        behind = [bytes_behind for _, bytes_behind in read]
        assert behind == sorted(behind)
        assert all(0 < n <= source.size() for n in behind)
        assert not behind or behind[-1] == source.size()


def test_a_plain_file_has_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert list(TextFile(tmp_path / "a.txt", "text").documents(0)) == [("one", 3)]
    assert list(TextFile(tmp_path / "a.txt", "text").documents(1)) == []


def test_a_file_is_known_by_its_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = TextFile(tmp_path / "a.txt", "text").identity()
    assert (before["size"], len(before["sha256"])) == (3, 64)
    (tmp_path / "a.txt").write_text("two")
    assert TextFile(tmp_path / "a.txt", "text").identity() != before


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ({"column": "content"}, r"a\.parquet has no column 'text'\n  -> choose from id, content"),
        ({"texts": [1, 2]}, r"column 'text' of .*a\.parquet holds int64, not text"),
        ({"texts": ["a", None]}, r"a\.parquet, row 1: no text in 'text'"),
    ],
)
def test_a_column_that_is_no_text_is_refused(parquet, write, message):
    with pytest.raises(DataError, match=message):
        list(read_documents(parquet(**write)))


def test_a_damaged_parquet_file_is_refused(tmp_path, parquet):
    (tmp_path / "b.parquet").write_bytes(parquet().read_bytes()[:-9])
    with pytest.raises(DataError, match=r"b\.parquet cannot be read"):
        list(read_documents(tmp_path / "b.parquet"))


def test_what_is_missing_is_said(parquet, monkeypatch):
    path = parquet()
    real = builtins.__import__

    def without(name, *arguments):
        if name.partition(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pyarrow, which is not installed\n  -> pip install 'lowbit"):
        list(read_documents(path))
    with pytest.raises(DataError, match=r"no file owner/name, .* `datasets`, which is not installed\n  -> check the"):
        find_sources(["owner/name"])


@pytest.fixture
def data_set(tmp_path, parquet, monkeypatch):
    """A folder as it lies on the hub: data files of two splits, no script."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    parquet().rename(folder / "train-00000.parquet")
    parquet(["held out"]).rename(folder / "test-00000.parquet")
    return HubDataset.at_commit(str(folder), subset=None, split="train", revision=None, field="text")


def test_a_data_set_is_streamed_from_any_row(data_set):
    for start in (0, 4, 10):
        assert [text for text, _ in data_set.documents(start)] == TEXTS[start:]
    assert [text for text, _ in HubDataset(data_set.name, None, "test", None, "text").documents(0)] == ["held out"]
    assert [behind for _, behind in data_set.documents(8)] == [25, 50]
    expected = {"dataset": data_set.name, "subset": None, "split": "train", "revision": None, "field": "text"}
    assert data_set.identity() == expected
    assert data_set.size() is None  # no card states it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "valid"}, r"\(split 'valid'\) cannot be read: .*\n  -> check split and subset"),
        ({"subset": "en"}, r"\(split 'train', subset 'en'\) cannot be read"),
        ({"field": "content"}, r"row 0: no string under 'content'\n  -> choose from id, text"),
    ],
)
def test_a_split_subset_or_field_that_is_not_there_is_named(data_set, changes, message):
    values = {"subset": None, "split": "train", "revision": None, "field": "text", **changes}
    with pytest.raises(DataError, match=message):
        list(HubDataset(data_set.name, **values).documents(0))


def test_a_name_that_is_no_file_is_looked_for_on_the_hub_at_one_commit(monkeypatch):
    asked = []

    class Info:
        sha = "0123abc"

    def dataset_info(self, name, revision):
        asked.append((name, revision))
        return Info

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    (source,) = find_sources(["owner/name"], subset="en", split="test", revision="main", field="content")
    assert source == HubDataset("owner/name", "en", "test", "0123abc", "content")
    assert asked == [("owner/name", "main")]


def error_of(kind):
    """An error of the hub's library, made without a response."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (error_of(GatedRepoError), "does not let you read 'owner/name' yet\n  -> accept its terms"),
        (error_of(RevisionNotFoundError), "'owner/name' has no revision None"),
        (error_of(RepositoryNotFoundError), "no file and no hub data set 'owner/name'\n  -> check the spelling"),
        (OSError("offline"), "no file owner/name, and the Hugging Face hub cannot be reached .*\n  -> connect"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_refused_with_the_reason(monkeypatch, error, message):
    def fail(self, name, revision):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(DataError, match=message):
        find_sources(["owner/name"])


def test_a_file_that_is_missing_is_no_data_set():
    for name in ("owner/name.txt", "text.jsonl", "a/b/c"):
        with pytest.raises(DataError, match="no text at"):
            find_sources([name])
