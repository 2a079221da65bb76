"""Text to shards: what is written, and that being killed leaves no trace in it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit.data import Manifest, TextTokenizer, encode_documents, find_sources, tokenization, tokenize
from lowbit.data.jobs import PROGRESS
from lowbit.data.sources import TextFile
from lowbit.data.tokenization import part_of
from lowbit.errors import DataError, LockedError
from lowbit.locks import NAME, sole_writer

DOCUMENTS = ["the cat sat", "", "on the mat, said the fox", "naïve café", "the dog " * 30, "12 日本", "the log"] * 3


@pytest.fixture(scope="module")
def tokenizer(byte_level_folder):
    return TextTokenizer.load(byte_level_folder)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Documents in memory."""

    name: str
    texts: tuple[str, ...]

    def size(self):
        return len(self.texts)

    def identity(self):
        return {"name": self.name}

    def documents(self, start):
        return ((text, number + 1) for number, text in enumerate(self.texts[start:], start=start))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stream(folder):
    manifest = Manifest.read(folder)
    return np.concatenate([np.asarray(shard) for shard in manifest.open(folder)])


def write_rows(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.mark.parametrize("shard_tokens", [7, 64, 100_000])
def test_shards_in_their_order_are_the_stream_of_documents(tmp_path, tokenizer, shard_tokens):
    write_rows(tmp_path / "a.jsonl", DOCUMENTS[:10])
    write_rows(tmp_path / "b.jsonl", DOCUMENTS[10:])
    sources = find_sources([str(tmp_path)])
    out = tmp_path / "out"
    assert tokenize(sources, tokenizer, out, shard_tokens=shard_tokens) == {"all": out}
    np.testing.assert_array_equal(stream(out), encode_documents(DOCUMENTS, tokenizer))
    manifest = Manifest.read(out)
    assert {shard.tokens for shard in manifest.shards[:-1]} <= {shard_tokens}
    assert manifest.documents == len([text for text in DOCUMENTS if text])
    assert manifest.text_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert manifest.tokens == len(stream(out))
    assert (manifest.tokenizer, manifest.vocab_size, manifest.separator) == (tokenizer.fingerprint(), 300, 0)
    assert manifest.sources == [source.identity() for source in sources]
    assert [p.name for p in out.iterdir() if p.suffix != ".npy"] == ["manifest.json"]
    manifest.verify(out)


def test_documents_are_split_by_their_own_hash(tmp_path, tokenizer):
    texts = tuple(f"the cat number {i % 150}" for i in range(200))
    folders = tokenize([Rows("a", texts)], tokenizer, tmp_path / "one", valid_share=0.25, shard_tokens=300)
    assert folders == {"train": tmp_path / "one" / "train", "valid": tmp_path / "one" / "valid"}
    parts = {part: tokenizer.backend.decode(stream(folder), skip_special_tokens=False).split("<|end|>")[:-1]
             for part, folder in folders.items()}  # fmt: skip
    assert not set(parts["train"]) & set(parts["valid"])
    assert sorted(parts["train"] + parts["valid"]) == sorted(texts)
    # 150 documents at 1/4: 37.5, deviation 5.3; four of them.
    assert 16 < len(set(parts["valid"])) < 59
    assert [text for text in texts if part_of(text.encode(), 0.25) == "valid"] == parts["valid"]
    # A larger share holds the smaller one, and another order or neighbour moves nothing.
    wider = tokenize([Rows("a", texts[::-1])], tokenizer, tmp_path / "two", valid_share=0.5)
    assert set(parts["valid"]) < set(tokenizer.backend.decode(stream(wider["valid"]), False).split("<|end|>"))
    assert Manifest.read(folders["valid"]).part == "valid"


class Killed(Exception):
    pass


@given(
    texts=st.lists(st.text("the cat\n日", max_size=60), min_size=1, max_size=30),
    shard_tokens=st.integers(2, 90),
    valid_share=st.sampled_from([0.0, 0.3]),
    cut=st.integers(0, 30),
    kills=st.lists(st.integers(1, 6), max_size=4),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_job_that_was_stopped_anywhere_ends_in_the_same_bytes(
    tmp_path_factory, tokenizer, monkeypatch, texts, shard_tokens, valid_share, cut, kills
):
    monkeypatch.setattr(tokenization, "_TEXT_A_CALL", 40)
    sources = [Rows("a", tuple(texts[:cut])), Rows("b", (*texts[cut:], "the end"))]
    options = {"valid_share": valid_share, "shard_tokens": shard_tokens}
    whole, broken = tmp_path_factory.mktemp("jobs") / "whole", tmp_path_factory.mktemp("jobs") / "broken"
    tokenize(sources, tokenizer, whole, **options)
    for after in kills:
        calls = 0

        def kill(progress, after=after):
            nonlocal calls
            calls += 1
            if calls == after:
                raise Killed

        try:
            tokenize(sources, tokenizer, broken, **options, report=kill)
        except Killed:
            continue
        break
    else:
        tokenize(sources, tokenizer, broken, **options)
    assert contents(broken) == contents(whole)


CHILD = """
import sys
from pathlib import Path
from lowbit.data import TextTokenizer, find_sources, tokenization
tokenization._TEXT_A_CALL = 20_000
text, tokenizer, folder = sys.argv[1:]
tokenization.tokenize(find_sources([text]), TextTokenizer.load(tokenizer), Path(folder), valid_share=0.1,
                      shard_tokens=10_000)
"""


def test_kill_9_at_any_moment_leaves_no_trace(tmp_path, tokenizer, byte_level_folder):
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mat", "said", "fox", "naïve", "café", "\n", "dog", "log", "12", "日本"]
    documents = [" ".join(rng.choice(words, size)) for size in rng.integers(20, 3000, 600)]
    text = write_rows(tmp_path / "text.jsonl", documents)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tokenize([TextFile(text, "text")], tokenizer, whole, valid_share=0.1, shard_tokens=10_000)
    command = [sys.executable, "-c", CHILD, str(text), str(byte_level_folder), str(broken)]
    killed = 0
    for delay in (0.0, 0.013, 0.031):
        shards = len(list(broken.rglob("shard-*")))
        child = subprocess.Popen(command)
        while child.poll() is None and len(list(broken.rglob("shard-*"))) < shards + 5:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed == 3
    begun = json.loads((broken / PROGRESS).read_text())
    assert begun["parts"]["train"]["shards"]  # something was there to go on from
    subprocess.run(command, check=True)
    assert contents(broken) == contents(whole)


def test_progress_counts_up_to_the_size_of_the_sources(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenization, "_TEXT_A_CALL", 100)
    seen = []
    tokenize([Rows("a", tuple(DOCUMENTS)), Rows("b", ("end",))], tokenizer, tmp_path / "out", report=seen.append)
    assert [p.read for p in seen] == sorted(p.read for p in seen)
    assert seen[-1].read == seen[-1].size == len(DOCUMENTS) + 1
    assert seen[-1].tokens == Manifest.read(tmp_path / "out").tokens
    assert seen[-1].documents == Manifest.read(tmp_path / "out").documents


@pytest.fixture
def interrupted(tmp_path, tokenizer, monkeypatch):
    """A folder with a few shards of a job that did not end."""
    monkeypatch.setattr(tokenization, "_TEXT_A_CALL", 100)
    text = write_rows(tmp_path / "text.jsonl", DOCUMENTS)

    def kill(progress):
        if progress.tokens > 60:
            raise Killed

    with pytest.raises(Killed):
        tokenize(find_sources([str(text)]), tokenizer, tmp_path / "out", shard_tokens=20, report=kill)
    return text, tmp_path / "out"


def test_another_job_does_not_go_on_with_a_folder(interrupted, tokenizer, byte_level_folder):
    text, out = interrupted
    for settings_, name in (({"shard_tokens": 30}, "options"), ({"shard_tokens": 20, "valid_share": 0.5}, "options")):
        with pytest.raises(DataError, match=rf"was begun by another job: other {name}\n  -> give the same command"):
            tokenize(find_sources([str(text)]), tokenizer, out, **settings_)
    with pytest.raises(DataError, match="other separator"):
        tokenize(find_sources([str(text)]), TextTokenizer.load(byte_level_folder, separator=1), out, shard_tokens=20)
    text.write_text(text.read_text() + '{"text": "more"}\n')
    with pytest.raises(DataError, match="other sources"):
        tokenize(find_sources([str(text)]), tokenizer, out, shard_tokens=20)


def test_a_shard_that_went_missing_or_an_unreadable_record_stops_a_resumption(interrupted, tokenizer):
    text, out = interrupted
    (out / "shard-00001.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-00001\.npy was finished, and is missing or cut now"):
        tokenize(find_sources([str(text)]), tokenizer, out, shard_tokens=20)
    (out / PROGRESS).write_text("{}")
    with pytest.raises(DataError, match=r"progress\.json cannot be read.*\n  -> remove the folder"):
        tokenize(find_sources([str(text)]), tokenizer, out, shard_tokens=20)


def test_only_a_new_folder_is_written_to(tmp_path, tokenizer):
    rows = [Rows("a", ("the cat",))]
    tokenize(rows, tokenizer, tmp_path / "out")
    with pytest.raises(DataError, match=r"out is finished already\n  -> read it"):
        tokenize(rows, tokenizer, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for name in ("other", "other/file"):
        with pytest.raises(DataError, match="exists, and is no folder of tokens"):
            tokenize(rows, tokenizer, tmp_path / name)
    with pytest.raises(DataError, match="cannot be made"):
        tokenize(rows, tokenizer, Path("/proc/nowhere/x"))


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([Rows("a", ("", ""))], {}, "the text is empty"),
        ([], {}, "no text to tokenize"),
        ([Rows("a", ("x",))], {"valid_share": 1.0}, r"a share of 1\.0"),
        ([Rows("a", ("x",))], {"shard_tokens": 1}, "shards of 1 tokens"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(tmp_path, tokenizer, sources, options, message):
    with pytest.raises(DataError, match=message):
        tokenize(sources, tokenizer, tmp_path / "out", **options)


def test_a_full_disk_is_reported_and_the_job_goes_on_later(tmp_path, tokenizer, monkeypatch):
    rows = [Rows("a", tuple(DOCUMENTS))]
    tokenize(rows, tokenizer, tmp_path / "whole", shard_tokens=20)
    monkeypatch.setattr(tokenization, "_TEXT_A_CALL", 30)
    save, calls = np.save, []

    def full(*arguments, **named):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        save(*arguments, **named)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device\n  -> make room"):
        tokenize(rows, tokenizer, tmp_path / "out", shard_tokens=20)
    tokenize(rows, tokenizer, tmp_path / "out", shard_tokens=20)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_jobs_do_not_write_to_one_folder(tmp_path, tokenizer):
    rows = [Rows("a", tuple(DOCUMENTS))]
    (tmp_path / "out").mkdir()
    with (
        sole_writer(tmp_path / "out"),
        pytest.raises(LockedError, match=rf"out is being written by process {os.getpid()}"),
    ):
        tokenize(rows, tokenizer, tmp_path / "out")
    (tmp_path / "out" / NAME).write_text("of a process that was killed")
    tokenize(rows, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / NAME).exists()


def test_a_job_that_another_one_finished_meanwhile_is_left_alone(tmp_path, tokenizer):
    """Sources are hashed between the first look at the folder and its lock, which takes minutes."""
    out = tmp_path / "out"

    class Overtaken(Rows):
        def identity(self):
            if not out.joinpath("manifest.json").exists():
                tokenize([Rows("a", tuple(DOCUMENTS))], tokenizer, out)
            return super().identity()

    with pytest.raises(DataError, match=r"out is finished already\n  -> read it"):
        tokenize([Overtaken("b", ("the cat",))], tokenizer, out, shard_tokens=7)
    assert contents(out) == contents_of_a_new_folder(tmp_path, tokenizer)


def contents_of_a_new_folder(tmp_path, tokenizer):
    tokenize([Rows("a", tuple(DOCUMENTS))], tokenizer, tmp_path / "new")
    return contents(tmp_path / "new")
