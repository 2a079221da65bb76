"""`synthesize`, from a model to a run on what it wrote."""

import re

import numpy as np

from lowbit.data import Manifest


def test_a_model_writes_what_a_run_reads(lowbit, float_model, tmp_path):
    out = tmp_path / "self"
    command = ["synthesize", float_model, "-o", out, "--tokens", "4e2", "--length", 16, "--batch", 16,
               "--min-tokens", 6, "--max-repeated", 1, "--max-compression", 99, "--seed", 3]  # fmt: skip
    done = lowbit(*command)
    assert done.status == 0, done.err
    manifest = Manifest.read(out)
    assert manifest.tokens >= 400
    assert f"{manifest.documents} texts, {manifest.tokens} tokens, shards: 1" in done.out
    assert re.search(r"left out +of \d+ texts: short \d+, repeated 0, compressible 0, duplicate \d+", done.out)
    assert re.search(r"took .* kept tokens/s of [\d,]+ written", done.out)
    assert f"--config.data.train={out}" in done.out
    assert "kept tokens/s" in done.err
    (source,) = manifest.sources
    assert source["teacher"] == str(float_model)
    assert len(source["fingerprint"]) == 32
    assert manifest.options["recipe"]["seed"] == 3
    again = lowbit(*command)
    assert (again.status, "is finished already" in again.err) == (2, True)
    shown = lowbit("inspect", out, "--checksums")
    assert shown.status == 0
    assert "synthetic True" in shown.out


def test_mistakes_are_refused_before_anything_is_written(lowbit, save_model, float_model, tmp_path):
    command = ["synthesize", float_model, "-o", tmp_path / "out", "--tokens", "100"]
    for arguments, message in (
        (["--length", 65], "texts of 65 tokens do not fit the model's 64 positions"),
        (["--length", 32, "--greedy", "three"], "--greedy three is no range of lengths"),
        (["--length", 32, "--greedy", "5-3"], "greedy lengths of 5 to 3"),
        (["--length", 32, "--tokens", "0.5"], "--tokens 0.5 is an empty generation"),
        (["--length", 32, "--separator", "nowhere"], "has no token 'nowhere'"),
        (["--length", 32, "--starts", 5000], "5,000 start tokens"),
    ):
        done = lowbit(*command, *arguments)
        assert done.status == 2
        assert message in done.err
    other = save_model(vocab_size=5000)
    done = lowbit("synthesize", other, "-o", tmp_path / "out", "--tokens", 100, "--length", 32)
    assert "has 4,096 tokens, the model's vocabulary 5,000" in done.err
    bare = save_model(tokenizer=False)
    done = lowbit("synthesize", bare, "-o", tmp_path / "out", "--tokens", 100, "--length", 32)
    assert (done.status, "tokenizer" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_runs_and_packed_files_write_too(lowbit, run_folder, packed, tmp_path):
    streams = []
    for source, out in ((run_folder, tmp_path / "run"), (packed, tmp_path / "packed")):
        done = lowbit("synthesize", source, "-o", out, "--tokens", 60, "--length", 12, "--batch", 8, "--min-tokens", 2,
                      "--top-k", 0, "--greedy", 3)  # fmt: skip
        assert done.status == 0, done.err
        manifest = Manifest.read(out)
        streams.append(np.concatenate(manifest.open(out)))
    # What is packed is what was trained: the same weights, the same text.
    np.testing.assert_array_equal(streams[0], streams[1])
