"""`tokenize`, from text to a run on its shards."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lowbit.cli.tokenize import _load
from lowbit.data import Manifest, TextTokenizer, read_documents
from lowbit.errors import LowbitError

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "assets" / "quickstart" / "text" / "valid.jsonl"
TOKENIZER = ROOT / "assets" / "quickstart" / "model"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"content": f"The ship number {i} lay in the bay."}) + "\n" for i in range(200)))
    return path


def test_text_becomes_shards_and_the_same_command_does_not_do_it_twice(lowbit, tmp_path):
    command = ["tokenize", TEXT, "--tokenizer", TOKENIZER, "-o", tmp_path / "out", "--shard-tokens", 20_000]
    done = lowbit(*command)
    assert done.status == 0, done.err
    manifest = Manifest.read(tmp_path / "out")
    documents = list(read_documents(TEXT))
    size = sum(len(document.encode()) for document in documents)
    assert f"{len(documents)} documents, {manifest.tokens:,} tokens, {size:,} bytes of text, shards: 3" in done.out
    assert re.search(r"took .* tokens/s, [\d.]+ MB/s", done.out)
    assert f"--config.data.train={tmp_path / 'out'}" in done.out
    assert "100%" in done.err
    assert "tokens/s" in done.err
    again = lowbit(*command)
    assert again.status == 2
    assert "is finished already" in again.err


def test_a_run_trains_and_evaluates_on_shards(lowbit, rows, tmp_path, train_arguments):
    done = lowbit("tokenize", rows, "--field", "content", "--tokenizer", TOKENIZER, "-o", tmp_path / "tokens",
                  "--valid-share", "0.3")  # fmt: skip
    assert done.status == 0, done.err
    folders = re.search(r"--config\.data\.train=(\S+) --config\.data\.valid=(\S+)", done.out).groups()
    arguments = [a for a in train_arguments(tmp_path / "run") if not a.startswith("--config.data")]
    done = lowbit(*arguments, f"--config.data.train={folders[0]}", f"--config.data.valid={folders[1]}",
                  "--config.data.attend_across_documents=false")  # fmt: skip
    assert done.status == 0, done.err
    assert re.search(r"^valid +[\d.]+", done.out, re.MULTILINE)
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())["evaluations"]["valid"]["nll"]
    windows = ("--windows", 8, "--length", 32)
    within = lowbit("eval", tmp_path / "run", "--data", folders[1], *windows, "--within-documents")
    across = lowbit("eval", tmp_path / "run", "--data", folders[1], *windows)
    assert (within.status, across.status) == (0, 0), within.err + across.err
    said = "was trained with data.attend_across_documents=false, and without --within-documents"
    assert (said in within.err, said in across.err) == (False, True)
    nats = [float(re.search(rf"^{folders[1]} +([\d.]+)", d.out, re.MULTILINE)[1]) for d in (within, across)]
    assert nats[0] == pytest.approx(recorded, abs=1e-4)  # printed to 4 places, summed in another order
    assert nats[1] != pytest.approx(recorded, abs=1e-4)


def test_a_tokenizer_comes_from_wherever_a_model_does(run_folder, packed, float_model):
    wanted = TextTokenizer.load(TOKENIZER).fingerprint()
    for source in (TOKENIZER, TOKENIZER / "tokenizer.json", run_folder, packed, float_model):
        tokenizer = _load(str(source), None)
        assert (tokenizer.fingerprint(), tokenizer.separator) == (wanted, 0), source
    assert _load(str(TOKENIZER), "5").separator == 5
    assert _load(str(TOKENIZER), "the").backend.id_to_token(_load(str(TOKENIZER), "the").separator) == "the"


def test_a_tokenizer_that_is_nowhere_is_refused(tmp_path):
    for source, message in (("absent", "there is no tokenizer at absent"), ("a/b", "hub cannot be reached")):
        with pytest.raises(LowbitError, match=message):
            _load(source, None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LowbitError, match=r"has no tokenizer\.json, and transformers cannot make one"):
        _load(str(tmp_path), None)


def test_the_numpy_runtime_refuses_to_keep_documents_apart(lowbit, packed, text):
    done = lowbit("eval", packed, "--data", text, "--within-documents", "--backend", "numpy")
    assert done.status == 2
    assert "does not keep documents apart\n  -> add --backend jax" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.txt"], "no text at absent.txt"),
        (["owner/name"], "no file owner/name"),
        ([TEXT, "--field", "body"], "valid.jsonl:1 has no string under 'body'"),
        ([TEXT, "--valid-share", "1.5"], "a share of 1.5 of the documents"),
        ([TEXT, "--shard-tokens", "x"], "no whole number of 1 or more"),
        ([TEXT, "--separator", "<none>"], "has no token '<none>'"),
        ([TEXT, "--split", "test"], "--split is for data sets of the hub, and no SOURCE is one"),
    ],
)
def test_mistakes_are_named(lowbit, tmp_path, arguments, message):
    done = lowbit("tokenize", *arguments, "--tokenizer", TOKENIZER, "-o", tmp_path / "out")
    assert done.status == 2
    assert message in done.err


def test_inspect_shows_a_folder_and_reads_every_byte_if_asked(lowbit, rows, tmp_path):
    folder = tmp_path / "tokens"
    command = ["tokenize", rows, "--field", "content", "--tokenizer", TOKENIZER, "-o", folder, "--shard-tokens", 1000]
    assert lowbit(*command).status == 0
    done = lowbit("inspect", folder, "--checksums")
    assert done.status == 0, done.err
    manifest = Manifest.read(folder)
    for line in ("shard-00001.npy +1,000 +2,128", "documents +200", f"tokens +{manifest.tokens:,}", "checksums +every"):
        assert re.search(line, done.out), line
    record = json.loads(lowbit("inspect", folder, "--json").out)
    assert (record["tokens"], record["checksums_compared"]) == (manifest.tokens, False)
    shard = folder / "shard-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert lowbit("inspect", folder).status == 0
    done = lowbit("inspect", folder, "--checksums")
    assert done.status == 2
    assert "shard-00001.npy was changed after it was written" in done.err


def test_equal_text_gives_equal_bytes(lowbit, rows, tmp_path):
    for name in ("one", "two"):
        command = ["tokenize", rows, "--field", "content", "--tokenizer", TOKENIZER, "-o", tmp_path / name]
        assert lowbit(*command, "--shard-tokens", 500).status == 0
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert np.load(tmp_path / "one" / "shard-00000.npy").dtype == np.uint16
