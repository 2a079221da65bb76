"""What the repository ships for the quickstart is what its README says."""

import bz2
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from lowbit.data import TextTokenizer, byte_lengths, encode_files, read_documents

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "assets" / "quickstart" / "text"
MODEL = ROOT / "assets" / "quickstart" / "model"


def test_sizes_are_those_of_the_readme():
    readme = (TEXT / "README.md").read_text()
    for name in ("train.jsonl", "valid.jsonl"):
        documents = list(read_documents(TEXT / name))
        size = sum(len(d.encode()) for d in documents)
        assert f"| `{name}` | {len(documents)} | {size:,} bytes |" in readme


def test_held_out_text_shares_no_novel_and_no_long_passage_with_the_training_text():
    rows = {
        name: [json.loads(line) for line in (TEXT / name).read_text().splitlines()]
        for name in ("train.jsonl", "valid.jsonl")
    }
    titles = {name: {row["title"] for row in part} for name, part in rows.items()}
    assert not titles["train.jsonl"] & titles["valid.jsonl"]
    runs = {}
    for name, part in rows.items():
        words = " ".join(row["text"] for row in part).split()
        runs[name] = {tuple(words[i : i + 13]) for i in range(len(words) - 12)}
    assert not runs["train.jsonl"] & runs["valid.jsonl"]


def test_the_tokenizer_has_exactly_4096_tokens_and_writes_every_byte_of_the_text():
    tokenizer = TextTokenizer.load(MODEL, vocab_size=4096)
    assert (tokenizer.vocab_size, tokenizer.separator) == (4096, 0)
    assert tokenizer.backend.id_to_token(0) == "<|endoftext|>"
    tokens = encode_files([TEXT / "valid.jsonl"], tokenizer)
    size = sum(len(d.encode()) for d in read_documents(TEXT / "valid.jsonl"))
    assert byte_lengths(tokenizer)[tokens].sum() == size
    document = next(read_documents(TEXT / "valid.jsonl"))
    assert tokenizer.decode(tokens[: np.flatnonzero(tokens == 0)[0]]) == document


def test_transformers_reads_the_tokenizer_folder():
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(MODEL)
    text = 'She said: "Hello — naïve  reader!"\n\tÆon 1920'
    assert len(theirs) == 4096
    assert theirs.eos_token_id == theirs.bos_token_id == 0
    assert theirs(text)["input_ids"] == TextTokenizer.load(MODEL).encode([text])[0]
    assert theirs.decode(theirs(text)["input_ids"]) == text


@pytest.fixture
def script(monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")

    return run


def test_the_scripts_make_the_same_files_twice(script, tmp_path, capsys):
    for name in ("one", "two"):
        out = tmp_path / name
        script("train_tokenizer.py", "--vocab-size", "400", "--out", out / "model", TEXT / "valid.jsonl")
        script(
            "tokenize_text.py", "--tokenizer", out / "model", "--shuffle-seed", "1", "--out", out / "t.npy",
            TEXT / "valid.jsonl",
        )  # fmt: skip
    for file in ("model/tokenizer.json", "model/tokenizer_config.json", "model/special_tokens_map.json", "t.npy"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "206,855 bytes" in capsys.readouterr().out


def test_the_text_script_takes_whole_novels_and_the_named_passages(script, tmp_path):
    table = runpy.run_path(str(ROOT / "scripts" / "make_quickstart_text.py"))

    def source(name, ids):
        rows = [{"id": f"eltec/{i}", "title": "T : ELTec edition", "author": "A.", "text": i} for i in ids]
        (tmp_path / name).write_bytes(bz2.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))

    novels = [f"{n}.xml#{part}" for n in table["TRAIN_NOVELS"] for part in (0, 1)]
    source("train_000.jsonl.bz2", [*novels, "ENG1_Other.xml#0"])
    source("valid.jsonl.bz2", [*table["VALID_ROWS"], "ENG1_Other.xml#1"])
    script("make_quickstart_text.py", tmp_path, "--out", tmp_path / "out")
    assert list(read_documents(tmp_path / "out" / "train.jsonl")) == novels
    assert list(read_documents(tmp_path / "out" / "valid.jsonl")) == list(table["VALID_ROWS"])
    shipped = [json.loads(line)["id"] for line in (TEXT / "valid.jsonl").read_text().splitlines()]
    assert shipped == [f"eltec/{i}" for i in table["VALID_ROWS"]]


def test_excluded_documents_do_not_reach_the_token_file(script, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "held out"}\n{"text": "kept"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "held out"}\n')
    script(
        "tokenize_text.py", "--tokenizer", MODEL, "--exclude", tmp_path / "b.jsonl", "--out", tmp_path / "t.npy",
        "--", tmp_path / "a.jsonl",
    )  # fmt: skip
    tokens = np.load(tmp_path / "t.npy")
    assert TextTokenizer.load(MODEL).decode(tokens) == "kept"
    assert "1 documents (1 left out)" in capsys.readouterr().out


def test_a_text_too_small_for_the_vocabulary_is_refused(script, tmp_path):
    (tmp_path / "a.txt").write_text("too little")
    with pytest.raises(SystemExit, match="give more text"):
        script("train_tokenizer.py", "--out", tmp_path / "model", tmp_path / "a.txt")
