"""`estimate`: what it prints, when it says no, and what it refuses."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "qat_quickstart.py:bits=2")
MODEL = f"--config.model.source={ROOT / 'assets' / 'quickstart' / 'model'}"
# How scales start is no part of any estimate, and a search for them is half of what is traced for one.
NO_SEARCH = "--config.quant.scale_init=max"


@pytest.fixture
def estimate(lowbit, tmp_path):
    """Returns estimate(*arguments) -> Done, of the quickstart; nothing is measured."""
    return lambda *arguments: lowbit("estimate", QUICKSTART, MODEL, NO_SEARCH, "--results", tmp_path, *arguments)


def test_a_run_is_estimated_without_weights_or_data(estimate):
    done = estimate("--share", "0.25", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    # 6 layers of d=192, ff=512, 6 and 2 heads of 32; 4,096 tokens; tied.
    matrices = 6 * (2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 512)
    assert found["quantized"] == matrices
    assert found["parameters"] == matrices + 4096 * 192 + 13 * 192
    forward = 2 * matrices + 2 * 6 * 192 * 129 + 2 * 192 * 4096  # 128 tokens a sequence: 64.5 keys a query
    assert found["flops_per_token"] == 3 * forward
    assert found["tokens_per_s"] == pytest.approx(0.25 * 989e12 / (3 * forward))
    assert found["hours"] == pytest.approx(found["tokens"] / found["tokens_per_s"] / 3600)
    assert found["memory"]["fits"]


def test_a_trained_run_had_the_estimated_sizes(lowbit, run_folder, train_arguments, packed):
    _, config, *overrides = train_arguments(run_folder)
    found = json.loads(lowbit("estimate", config, *overrides, "--tokens-per-s", "100", "--json").out)
    assert found["tokens"] == json.loads((run_folder / "result.json").read_text())["tokens"]
    tensors = json.loads(lowbit("inspect", packed, "--json").out)["tensors"]
    assert found["packed_bytes"] == sum(tensor["nbytes"] for tensor in tensors)
    assert found["tokens_per_s"] == 100


def test_the_table_names_every_part(estimate):
    done = estimate("--device", "tpu-v5e", "--mesh", "4,2,1")
    assert done.status == 0, done.err
    for line in (
        r"devices +8 x tpu-v5e \(data 4, fsdp 2, tensor 1\)",
        r"method +paretoq, 2 bits",
        r"activations .* \(remat full\)",
        r"peak .* of 17\.18 GB: fits",
        r"tokens/s +unknown: tpu-v5e has not been measured; give --share or --tokens-per-s",
        r"checkpoint .*, of which 1 are kept",
    ):
        assert re.search(line, done.out), line


def test_a_measurement_gives_speed_and_time(estimate, tmp_path):
    case = {"variant": "2", "mesh": {"data": 1, "fsdp": 1, "tensor": 1}, "model_tflops_per_device": 200.0}
    record = {"device": "NVIDIA H100 80GB HBM3", "shape": "tiny", "kernel_weights": 10**6, "cases": [case]}
    (tmp_path / "train_throughput_x.json").write_text(json.dumps(record))
    done = estimate("--devices", "2")
    assert "20% of the peak, as measured for tiny, variant 2, times 2 devices (train_throughput_x.json)" in done.out


def test_what_does_not_fit_is_said_and_is_the_status(estimate):
    done = estimate("--config.train.batch_size=1048576", "--config.train.tokens=1e9")
    assert done.status == 1
    assert "DOES NOT FIT" in done.out


def test_estimates_on_the_cluster_page_fit(lowbit):
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"^    \S*python -m lowbit (estimate .*)$", page, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        spec, *rest = command.split()[1:]
        done = lowbit("estimate", ROOT / spec, *rest, MODEL, NO_SEARCH)  # the page's model lies on the hub
        assert done.status == 0, command + done.out + done.err


def test_the_schedulers_script_starts_resumes_and_ends(tmp_path):
    """With a python that prints what it was called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    run = tmp_path / "runs" / "a b"

    def call():
        command = ["bash", str(ROOT / "scripts" / "run_or_resume.sh"), str(run), "c.py:bits=2", "--distributed"]
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    started = f"-m lowbit train c.py:bits=2 --distributed --config.run_folder={run}"
    assert call() == started
    run.mkdir(parents=True)
    (run / "config.json").touch()
    assert call() == f"{started} --resume"
    (run / "result.json").touch()
    assert call() == f"the run in {run} is finished"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "2,2"], r"--mesh 2,2 is no mesh\n  -> give three sizes"),
        (["--mesh", "3,1,1"], "16 sequences cannot be cut into 1 parts over 3 devices"),
        (["--mesh", "1,1,4"], "'tensor' of 4 cuts through heads"),
        (["--devices", "2", "--mesh", "1,1,1"], "does not cover 2 devices"),
        (["--mesh", "16,1,1", "--compile"], r"the mesh has 16 devices, and 8 are here to compile for\n  -> leave out"),
        (["--share", "1.5"], r"--share 1.5\n  -> give a number above 0"),
        (["--share", "0.5", "--tokens-per-s", "9"], "both say how fast"),
        (["--tokens-per-s", "0"], "--tokens-per-s 0\n  -> give a finite number above 0"),
        (["--results", "nowhere"], "there is no folder nowhere"),
        (["--device", "h10"], "unknown device 'h10'\n  -> did you mean 'h100'"),
        (["--config.model.source=nowhere"], "there is no model at nowhere"),
        (["--config.model.attention=cudnn", "--device", "tpu-v5e"], "cuDNN attention cannot run on tpu"),
    ],
)
def test_mistakes_are_refused(estimate, arguments, message):
    done = estimate(*arguments)
    assert done.status == 2, done.out
    assert re.search(message, done.err), done.err


def test_compiling_agrees_with_counting(estimate):
    """Only that both are there and of one size: how near they are is tested with an optimizing compiler."""
    done = estimate("--compile", "--json", "--config.train.batch_size=2", "--config.evaluation.batch_size=2")
    found = json.loads(done.out)
    assert found["compiled"] > found["memory"]["state"]
