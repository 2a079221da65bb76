import bz2
import gzip
import json

import numpy as np
import pytest

from lowbit.data import TextTokenizer, TokenWindows, encode_documents, encode_files, read_documents, save_tokens
from lowbit.data.text import find_texts
from lowbit.errors import DataError

ROWS = "".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(["the cat", "naïve\nmat", ""])) + "\n"
DOCUMENTS = ["the cat", "naïve\nmat", ""]


@pytest.fixture
def tokenizer(byte_level_folder):
    return TextTokenizer.load(byte_level_folder)


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.bz2", bz2.compress)]
)
def test_rows_are_documents_under_any_compression(tmp_path, name, write):
    (tmp_path / name).write_bytes(write(ROWS.encode()))
    assert list(read_documents(tmp_path / name)) == DOCUMENTS


@pytest.mark.parametrize(("name", "write"), [("a.txt", bytes), ("b.raw", bytes), ("c.md.gz", gzip.compress)])
def test_a_plain_file_is_one_document(tmp_path, name, write):
    (tmp_path / name).write_bytes(write("one\n\ntwo — three\n".encode()))
    assert list(read_documents(tmp_path / name)) == ["one\n\ntwo — three\n"]


def test_line_ends_are_kept_because_bytes_are_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert list(read_documents(tmp_path / "a.txt")) == ["one\r\ntwo\rthree\n"]


def test_a_folder_stands_for_its_text_files_by_name(tmp_path):
    for name in ("b.txt", "a.jsonl", "in/c.txt.gz", "image.png", "data.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_texts([tmp_path])] == ["a.jsonl", "b.txt", "in/c.txt.gz"]


def test_every_document_ends_with_the_separator_and_can_be_read_back(tokenizer):
    tokens = encode_documents(DOCUMENTS, tokenizer)
    assert tokens.dtype == np.uint16
    ends = np.flatnonzero(tokens == tokenizer.separator)
    assert len(ends) == 2  # the empty document leaves no trace
    assert ends[-1] == len(tokens) - 1
    assert [tokenizer.decode(part) for part in np.split(tokens, ends + 1)[:2]] == DOCUMENTS[:2]


def test_calls_to_the_tokenizer_do_not_show_in_the_stream(tokenizer, monkeypatch):
    documents = ["the cat", "sat", "on", "the mat", "and sang"]
    whole = encode_documents(documents, tokenizer)
    monkeypatch.setattr("lowbit.data.text._DOCUMENTS_A_CALL", 2)
    np.testing.assert_array_equal(encode_documents(iter(documents), tokenizer), whole)


def test_a_large_vocabulary_takes_four_bytes(tokenizer):
    wide = TextTokenizer(tokenizer.backend, 0, (1 << 16) + 1)
    assert encode_documents(["the cat"], wide).dtype == np.uint32


def test_files_become_a_token_file_that_windows_read(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    (tmp_path / "b.jsonl").write_text(ROWS)
    tokens = encode_files([tmp_path], tokenizer)
    save_tokens(tmp_path / "new" / "t.npy", tokens)
    windows = TokenWindows.open(tmp_path / "new" / "t.npy", length=2, vocab_size=tokenizer.vocab_size)
    np.testing.assert_array_equal(windows.arrays[0], tokens)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_tokens(tmp_path / "t.npy", np.arange(3, dtype=np.uint16))

    def fail(file, *_, **__):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("numpy.save", fail)
    with pytest.raises(DataError, match=r"t\.npy cannot be written: disk full\n  -> check the path and the disk"):
        save_tokens(tmp_path / "t.npy", np.arange(9, dtype=np.uint16))
    assert [p.name for p in tmp_path.iterdir()] == ["t.npy"]
    assert len(np.load(tmp_path / "t.npy")) == 3


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_empty_text_is_refused(tokenizer, documents):
    with pytest.raises(DataError, match="the text is empty\n  -> give at least one document"):
        encode_documents(documents, tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"content": "x"}', r"a\.jsonl:1 has no string under 'text'\n  -> write rows such as"),
        ("a.jsonl", b"[1, 2]", r"a\.jsonl:1 has no string under 'text'"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl:1 has no string under 'text'"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl:1 is not valid Unicode.*\n  -> mend or leave out this row"),
        ("a.txt", b"caf\xe9", r"a\.txt cannot be read.*\n  -> fetch the file again, as UTF-8"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz cannot be read"),
        ("a.txt.gz", gzip.compress(bytes(range(256)))[:40], r"a\.txt\.gz cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 99)[:12] + b"\xff" * 20, r"a\.txt\.gz cannot be read"),
        ("a.jsonl.bz2", bz2.compress(ROWS.encode())[:-9], r"a\.jsonl\.bz2 cannot be read"),
        ("a.docx", b"", r"a\.docx is not a text file that can be read\n  -> give files that end in \.txt"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("a.") else "",
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_missing_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no text at .*none\.txt"):
        list(read_documents(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"the folder .* holds no text"):
        find_texts([tmp_path])
