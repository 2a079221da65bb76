"""From a teacher to a folder that training reads; being killed leaves no trace in it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lowbit.data import Manifest, TextTokenizer, open_windows
from lowbit.data.jobs import PROGRESS
from lowbit.errors import ConfigError, DataError, TokenizerError
from lowbit.generation import Generator, Sampling
from lowbit.llama import ActivationRounding, InputRounding
from lowbit.models.activations import range_variables
from lowbit.synthesis import REASONS, Filters, Recipe, synthesize
from lowbit.synthesis.recipe import special_tokens, start_tokens, texts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = Recipe(tokens=400, length=24, batch=16)
FILTERS = Filters(min_tokens=4, max_repeated=0.5)


@pytest.fixture(scope="module")
def make(generator, tokenizer):
    """Returns make(folder, recipe, filters, ...) -> manifest."""

    def run(folder, recipe=RECIPE, filters=FILTERS, *, of=generator, shard_tokens=60, **options):
        options = {"tokenizer": tokenizer, "teacher": {"teacher": "tiny", "fingerprint": "f"}} | options
        return synthesize(of, options.pop("tokenizer"), folder, recipe, filters, shard_tokens=shard_tokens, **options)

    return run


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "whole"
    return folder, make(folder)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in {".npy", ".json"}}


def stream(folder):
    return np.concatenate([np.asarray(shard) for shard in Manifest.read(folder).open(folder)])


def test_the_folder_is_a_folder_of_tokens_and_says_that_it_is_synthetic(whole, tokenizer):
    folder, manifest = whole
    manifest.verify(folder)
    tokens = stream(folder)
    assert len(tokens) == manifest.tokens >= RECIPE.tokens
    *rows, rest = np.split(tokens, np.flatnonzero(tokens == 0) + 1)
    assert len(rest) == 0
    assert manifest.documents == len(rows)
    assert manifest.tokens - len(rows[-1]) < RECIPE.tokens  # the text that reaches them is the last
    assert manifest.text_bytes == sum(len(tokenizer.decode(row[:-1]).encode()) for row in rows)
    assert all(4 <= len(row) - 1 <= 24 for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)  # in the order of the vocabulary
    (source,) = manifest.sources
    assert (source["synthetic"], source["teacher"], source["fingerprint"]) == (True, "tiny", "f")
    assert set(source["dropped"]) == set(REASONS)
    assert source["dropped"]["short"] > 0
    assert source["texts"] == manifest.documents + sum(source["dropped"].values())
    assert manifest.options["recipe"]["sampling"] == {"temperature": 1.0, "top_k": 50, "top_p": None}
    assert manifest.options["filters"]["max_repeated"] == 0.5
    assert manifest.check_tokenizer(folder, 260, tokenizer) is None
    windows = open_windows([str(folder)], length=16, vocab_size=260, tokenizer=tokenizer)
    assert len(windows) > 10


class Killed(Exception):
    pass


@pytest.mark.parametrize("kills", [(1,), (1, 1, 2), (2, 1, 1, 1)])
def test_a_job_that_was_stopped_anywhere_ends_in_the_same_bytes(make, whole, tmp_path, kills):
    for after in kills:
        calls = 0

        def kill(progress, after=after):
            nonlocal calls
            calls += 1
            if calls == after:
                raise Killed

        try:
            make(tmp_path / "out", report=kill)
        except Killed:
            continue
        break
    else:
        make(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole[0])


def test_a_job_that_was_stopped_before_its_manifest_goes_on(make, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.data.jobs.Manifest.write", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        make(tmp_path / "out")
    monkeypatch.undo()
    make(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole[0])


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_generator
from lowbit.data import TextTokenizer
from lowbit.synthesis import Filters, Recipe, synthesize
synthesize(make_generator(), TextTokenizer.load(sys.argv[2], vocab_size=260), Path(sys.argv[3]),
           Recipe(tokens=3000, length=24, batch=16), Filters(min_tokens=4, max_repeated=0.5),
           teacher={"teacher": "tiny"}, shard_tokens=100)
"""


def test_kill_9_at_any_moment_leaves_no_trace(make, tokenizer_folder, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-c", CHILD, str(HERE), str(tokenizer_folder)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
                                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}  # fmt: skip
    subprocess.run([*command, str(whole)], check=True, cwd=ROOT, env=environment)
    killed = 0
    for delay in (0.02,):
        shards = len(list(broken.glob("shard-*")))
        child = subprocess.Popen([*command, str(broken)], cwd=ROOT, env=environment)
        while child.poll() is None and len(list(broken.glob("shard-*"))) < shards + 3:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed == 1
    assert json.loads((broken / PROGRESS).read_text())["parts"]["all"]["shards"]  # something to go on from
    subprocess.run([*command, str(broken)], check=True, cwd=ROOT, env=environment)
    assert contents(broken) == contents(whole)


def test_another_job_does_not_go_on_with_a_folder(make, tmp_path, tokenizer_folder):
    def kill(progress):
        raise Killed

    with pytest.raises(Killed):
        make(tmp_path / "out", report=kill)
    for recipe, filters in ((dataclasses.replace(RECIPE, seed=1), FILTERS), (RECIPE, Filters(min_tokens=5))):
        with pytest.raises(DataError, match=r"was begun by another job: other options\n  -> give the same command"):
            make(tmp_path / "out", recipe, filters)
    with pytest.raises(DataError, match="other sources"):
        make(tmp_path / "out", teacher={"teacher": "tiny", "fingerprint": "g"})
    with pytest.raises(DataError, match="other separator"):
        make(tmp_path / "out", tokenizer=TextTokenizer.load(tokenizer_folder, vocab_size=260, separator=1))
    make(tmp_path / "done", dataclasses.replace(RECIPE, tokens=20))
    with pytest.raises(DataError, match="done is finished already"):
        make(tmp_path / "done", dataclasses.replace(RECIPE, tokens=20))


def rounded(generator, scale, bits=8):
    """The same weights, with inputs of one linear layer rounded by a static range."""
    rounding = ActivationRounding((("layers/mlp/down_proj", InputRounding(bits, True, "tensor", "static")),))
    grid = range_variables({"layers/mlp/down_proj": {"scale": np.full((2, 1, 1), scale, np.float32)}})
    layers = generator.weights.layers | {"grid": grid}
    return Generator(generator.decoder._replace(rounding=rounding), generator.weights._replace(layers=layers))


def test_a_teacher_that_computes_otherwise_does_not_go_on_with_a_folder(make, generator, tmp_path, monkeypatch):
    def kill(progress):
        raise Killed

    with pytest.raises(Killed):
        make(tmp_path / "out", of=rounded(generator, 0.05), report=kill)
    computed = json.loads((tmp_path / "out" / PROGRESS).read_text())["job"]["options"]["computed"]
    assert computed["jax"] == jax.__version__
    assert computed["activations"]["rounded"] == "8-bit inputs"
    for other in (generator, rounded(generator, 0.06), rounded(generator, 0.05, bits=7)):
        with pytest.raises(DataError, match="was begun by another job: other options"):
            make(tmp_path / "out", of=other)
    with pytest.raises(Killed):  # the same one goes on
        make(tmp_path / "out", of=rounded(generator, 0.05), report=kill)
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    with pytest.raises(DataError, match="was begun by another job: other options"):
        make(tmp_path / "out", of=rounded(generator, 0.05))


def test_an_empty_generation_is_an_error(make, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.synthesis.job.PATIENCE", 40)
    message = r"an empty generation: the last 40 texts were all left out \(so far: short 40\)\n  -> loosen the filters"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "short", filters=Filters(min_tokens=25))


def test_a_teacher_that_takes_the_likeliest_token_writes_each_text_once(make, tmp_path):
    greedy = dataclasses.replace(RECIPE, sampling=Sampling(), starts=20, tokens=10_000)
    message = r"behind each of the 20 start tokens are written, and come to \d+ of 10,000 tokens\n  -> draw \(a temp"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "again", greedy, Filters(min_tokens=2, max_repeated=1.0, max_compression=1000.0))


class FirstAlone(Filters):
    """Keeps the first text; all others are said to repeat themselves."""

    def reason(self, tokens, content, seen):
        return "repeated" if seen._signatures else super().reason(tokens, content, seen)


def test_texts_that_run_in_circles_end_a_job_early(make, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.synthesis.job.FIRST_TEXTS", 24)
    monkeypatch.setattr("lowbit.synthesis.job.PATIENCE", 40)
    drawn = dataclasses.replace(RECIPE, tokens=10_000)
    greedy = dataclasses.replace(drawn, sampling=Sampling())
    circles = Filters(min_tokens=1, max_repeated=1.0, max_compression=1e-6)
    kept = FirstAlone(min_tokens=1, max_repeated=1.0, max_compression=1000.0)
    early = (
        r"an empty generation: 24 texts in a row were left out \({} 24\)\n  -> draw at a higher temperature \(0 takes"
    )
    late = r"the last 40 texts were all left out \(so far: {} 40\)"
    for name, recipe, filters, message in (
        ("greedy", greedy, circles, early.format("compressible")),
        ("greedy_after_one", greedy, kept, early.format("repeated")),
        ("drawn", drawn, circles, early.format("compressible")),
        # Where texts are drawn, others may follow: one was kept, or it is their length.
        ("drawn_after_one", drawn, kept, late.format("repeated")),
        ("short", drawn, Filters(min_tokens=25), late.format("short")),
    ):
        with pytest.raises(DataError, match=message):
            make(tmp_path / name, recipe, filters)


def test_what_the_teacher_cannot_write_is_refused(make, tmp_path, tokenizer_folder, generator):
    with pytest.raises(DataError, match="texts of 65 tokens do not fit the model's 64 positions"):
        make(tmp_path / "long", dataclasses.replace(RECIPE, length=65))
    other = TextTokenizer.load(tokenizer_folder, vocab_size=262)
    with pytest.raises(TokenizerError, match="the tokenizer has 262 tokens, the teacher's vocabulary 260"):
        make(tmp_path / "other", tokenizer=other)
    with pytest.raises(DataError, match="258 start tokens, and the vocabulary has 257 that are no special ones"):
        make(tmp_path / "starts", dataclasses.replace(RECIPE, starts=258))
    with pytest.raises(ConfigError, match="a batch of 3 texts on 8 devices"):
        make(tmp_path / "batch", dataclasses.replace(RECIPE, batch=3))
    assert isinstance(generator, Generator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens=0 is out of range\n  -> give 1 or more"),
        ({"batch": 0}, "batch=0 is out of range"),
        ({"starts": 0}, "starts=0 is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"length": 1}, "texts of 1 tokens are an empty generation"),
        ({"greedy": (5, 3)}, "greedy lengths of 5 to 3 in texts of 1024 tokens"),
        ({"length": 4}, "greedy lengths of 3 to 5 in texts of 4 tokens\n  -> give two ascending numbers"),
    ],
)
def test_recipes_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**{"tokens": 1} | options)


def test_texts_are_functions_of_seed_start_and_pass():
    a = texts(Recipe(tokens=1), [7, 8, 9, 11], 2, 6)
    assert a.starts.tolist() == [9, 11, 7, 8, 9, 11]
    assert a.greedy.tolist() == [5, 3, 4, 5, 3, 4]
    assert len(set(a.seeds.tolist())) == 6
    b = texts(Recipe(tokens=1), [9, 7], 0, 2)  # other start tokens: the same draws after each
    assert b.seeds[0] == a.seeds[0]
    assert texts(Recipe(tokens=1, seed=1), [9], 0, 1).seeds[0] != a.seeds[0]


def test_special_tokens_begin_no_text(tokenizer):
    special = special_tokens(tokenizer, 262, (5,))
    assert np.flatnonzero(special).tolist() == [0, 1, 2, 5, 260, 261]  # rows that fill up the table as well
    assert start_tokens(special, 3) == (3, 4, 6)
    assert len(start_tokens(special, None)) == 256
