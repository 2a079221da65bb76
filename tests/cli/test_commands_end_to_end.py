"""From a config to text: every command on the output of the one before it."""

import json
import math
import re
import shutil

import pytest

from lowbit import formats
from lowbit.cli import eval_texts, quantized
from lowbit.cli.run_steps import checkpoint_steps
from lowbit.errors import CheckpointError
from lowbit.evals import Evaluation
from lowbit.formats import PackedTensor
from lowbit.train import load_trained

NUMBERS = ("--windows", 8, "--length", 32)


def nats(out, name):
    """The figure in a table of evaluations."""
    return float(re.search(rf"^{re.escape(str(name))} +([\d.]+)", out, re.MULTILINE)[1])


def test_train_prints_results_and_where_they_lie(trained):
    folder, out = trained
    recorded = json.loads((folder / "result.json").read_text())
    assert nats(out, "sea") == pytest.approx(recorded["evaluations"]["sea"]["nll"], abs=5e-5)  # printed to 4 places
    assert f"{recorded['bits_per_weight']:.3f} bits/weight" in out
    for line in ("2 steps, 512 tokens", f"result +{folder}/result.json", "next .* export .* -o .*model.lowbit"):
        assert re.search(line, out), line


def test_run_and_packed_file_predict_alike_on_both_backends(lowbit, run_folder, packed, text, tmp_path):
    trained = json.loads((run_folder / "result.json").read_text())["evaluations"]["sea"]
    figures = []
    for number, arguments in enumerate([[run_folder], [packed, "--backend", "jax"], [packed, "--backend", "numpy"]]):
        output = tmp_path / f"{number}.json"
        done = lowbit("eval", *arguments, "--data", text, *NUMBERS, "-o", output)
        assert done.status == 0, done.err
        record = json.loads(output.read_text())
        figures.append(record["texts"][str(text)])
        assert nats(done.out, text) == pytest.approx(figures[-1]["nll"], abs=5e-5)
        assert record["backend"] == ("numpy" if number == 2 else "jax")
    for figure in figures:
        # One model in float32 throughout: sums of 2**5 positions and 4096 logits in other orders.
        assert figure["nll"] == pytest.approx(trained["nll"], rel=1e-5)
        assert figure["stderr"] == pytest.approx(trained["stderr"], rel=1e-3)
        assert (figure["tokens"], figure["bytes"]) == (256, trained["bytes"])


def test_export_prints_bits_three_ways_and_is_deterministic(lowbit, run_folder, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "git_commit", lambda: "0123abc")  # the one thing in the file that may change
    done = lowbit("export", run_folder, "-o", tmp_path / "one.lowbit")
    assert done.status == 0, done.err
    other_spelling = f"{run_folder.parent}/./{run_folder.name}/"
    assert lowbit("export", other_spelling, "-o", tmp_path / "two.lowbit").status == 0
    assert (tmp_path / "one.lowbit").read_bytes() == (tmp_path / "two.lowbit").read_bytes()
    model = formats.read(packed)
    summary = formats.summarize(model)
    assert f"{summary.quantized_bits:.3f} bits/weight, {summary.quantized_weights:,} weights" in done.out
    assert f"{summary.model_bits:.3f} bits/weight" in done.out
    size = (tmp_path / "one.lowbit").stat().st_size
    assert f"{8 * size / summary.weights:.3f} bits/weight" in done.out
    assert f"{2 * summary.weights / 1e3:.1f} kB at float16" in done.out
    origin = model.meta["origin"]
    assert (origin["kind"], origin["path"], origin["step"]) == ("run", str(run_folder), 2)
    assert origin["quant"]["method"] == "paretoq"
    assert sorted(model.tokenizer) == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]


def test_verify_finds_the_run_and_the_model_equal(lowbit, run_folder, packed):
    done = lowbit("verify", packed)
    assert done.status == 0, done.err
    assert f"against run {run_folder} at step 2" in done.out
    assert "all equal bit for bit" in done.out
    assert "64 positions" in done.out
    done = lowbit("verify", packed, "--against", run_folder, "--text", "The men sat on the deck.")
    assert done.status == 0, done.err
    assert "the packed file is the trained model" in done.out


def with_another_code(packed, path):
    """Writes the packed file with one code changed."""
    model = formats.read(packed)
    name = "layers.1.mlp.up_proj.kernel"
    tensor = model.tensors[name]
    codes = tensor.codes().copy()
    codes[0, 0] = (codes[0, 0] + 1) % 4
    model.tensors[name] = PackedTensor.from_codes(codes, tensor.scale, tensor.levels, tensor.grid)
    formats.write(path, model)
    return path


def test_verify_says_no_with_status_1(lowbit, packed, tmp_path):
    done = lowbit("verify", with_another_code(packed, tmp_path / "other.lowbit"))
    assert done.status == 1
    assert "1 DIFFER" in done.out
    assert "is NOT the trained model" in done.out


@pytest.fixture
def gone_on(run_folder, tmp_path):
    """The run, with a later checkpoint that stands for whatever more training would have left there."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "checkpoints" / "4").mkdir()
    return folder


def test_verify_reads_the_step_of_the_file_after_the_run_went_on(lowbit, gone_on, packed):
    done = lowbit("verify", packed, "--against", gone_on)
    assert done.status == 0, done.err
    assert (
        f"against run {gone_on} at step 2\nthe run has gone on since: its newest checkpoint is of step 4\n" in done.out
    )


def test_verify_names_both_steps_where_the_one_of_the_file_is_gone(lowbit, gone_on, packed, tmp_path):
    checkpoints = gone_on / "checkpoints"
    checkpoints.joinpath("4").rmdir()
    checkpoints.joinpath("2").rename(checkpoints / "4")
    note = "the file is of step 2, of which the run has no checkpoint; its newest is of step 4\n"
    for file, status in ((packed, 0), (with_another_code(packed, tmp_path / "other.lowbit"), 1)):
        done = lowbit("verify", file, "--against", gone_on)
        assert done.status == status, done.err
        assert f"against run {gone_on} at step 4\n{note}" in done.out


def test_a_step_that_cannot_be_read_is_named(gone_on):
    checkpoints = gone_on / "checkpoints"
    assert checkpoint_steps(gone_on) == [2, 4]
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3\n  -> name a step that it has: 2, 4"):
        load_trained(gone_on, 3)
    shutil.rmtree(checkpoints / "2" / "model")
    with (
        pytest.warns(UserWarning, match="checkpoint 2 in .* cannot be read"),
        pytest.raises(CheckpointError, match=rf"checkpoint 2 in {checkpoints} cannot be read"),
    ):
        load_trained(gone_on, 2)


def test_inspect_lists_what_the_file_holds(lowbit, packed):
    done = lowbit("inspect", packed, "--checksums")
    assert done.status == 0, done.err
    for line in (
        r"layers\.1\.mlp\.down_proj\.kernel +seq2 +64x32 +2\.250 +576",
        r"embed\.embedding +float16 +4096x32",
        r"seq2 +-0\.75 -0\.25 0\.25 0\.75",
        r"hidden_size +32",
        r"origin\.step +2",
        r"tokenizer\.json",
        r"quantized matrices +2\.\d{3} bits/weight",
        r"checksums +every tensor",
    ):
        assert re.search(line, done.out), line
    record = json.loads(lowbit("inspect", packed, "--json").out)
    assert record["file_bytes"] == packed.stat().st_size
    assert sum(tensor["weights"] for tensor in record["tensors"]) == record["weights"]
    assert record["bits_per_weight"]["file"] == 8 * record["file_bytes"] / record["weights"]
    assert record["checksums_compared"] is False
    assert record["grids"] == {"seq2": [-0.75, -0.25, 0.25, 0.75]}


def test_generate_streams_text_and_equal_seeds_agree(lowbit, packed):
    arguments = ("generate", packed, "--prompt", "The ship", "--tokens", 12, "--temperature", 1, "--top-k", 50)
    first = lowbit(*arguments, "--seed", 1)
    assert first.status == 0, first.err
    assert first.out.startswith("The ship")
    assert len(first.out) > len("The ship\n")
    rates = r"prompt of \d+: [\d.]+ tokens/s\), then [\d.]+ tokens/s"
    engine = r"\(\w+ kernels, \w+ activations\)"
    assert re.fullmatch(rf"12 tokens; the first after \d+\.\d\d s \({rates} {engine}\n", first.err)
    assert lowbit(*arguments, "--seed", 1).out == first.out
    in_numpy = [lowbit(*arguments, "--seed", 1, "--storage", storage).out for storage in ("packed", "float32")]
    assert in_numpy[0] == in_numpy[1]
    assert lowbit(*arguments, "--seed", 2).out != first.out


@pytest.mark.parametrize(
    ("rounding", "words"),
    [
        (["--method", "rtn", "--bits", 1.58, "--granularity", 16, "--scale-init", "max"], "rtn to 1.58 bits"),
        pytest.param(
            *(["--method", "absmean_ternary", "--granularity", "tensor"], "absmean_ternary"), marks=pytest.mark.slow
        ),
        (["--method", "float"], "float"),
    ],
    ids=["rtn-1.58-16-max", "absmean_ternary-tensor", "float"],
)
def test_a_rounded_model_is_the_same_on_the_fly_and_packed(lowbit, float_model, text, tmp_path, rounding, words):
    path = tmp_path / "rounded.lowbit"
    assert lowbit("export", float_model, *rounding, "-o", path).status == 0
    done = lowbit("verify", path)
    assert done.status == 0, done.err
    assert f"against {float_model} rounded by {words}\n" in done.out
    width = json.loads(lowbit("inspect", path, "--json").out)["meta"]["origin"]["quant"]["bits"]
    assert width == (1.58 if "--bits" in rounding else None)
    fly = lowbit("eval", float_model, *rounding, "--data", text, *NUMBERS)
    assert fly.status == 0, fly.err
    packed = lowbit("eval", path, "--data", text, *NUMBERS)
    assert packed.out == fly.out


def test_evaluation_of_a_broken_model_is_still_json(lowbit, packed, text, tmp_path, monkeypatch):
    broken = Evaluation(math.nan, None, math.inf, math.nan, tokens=8, bytes=9, windows=1)
    monkeypatch.setattr(eval_texts, "summarize", lambda _: broken)
    output = tmp_path / "broken.json"
    done = lowbit("eval", packed, "--backend", "numpy", "--data", text, *NUMBERS, "-o", output)
    assert done.status == 0, done.err

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads(output.read_text(), parse_constant=refuse)["texts"][str(text)]
    assert [record[key] for key in ("nll", "perplexity", "bits_per_byte", "tokens")] == [None, None, None, 8]


def test_float_model_is_evaluated_as_it_is(lowbit, float_model, text):
    done = lowbit("eval", float_model, "--data", text, *NUMBERS)
    assert done.status == 0, done.err
    rounded = lowbit("eval", float_model, "--data", text, *NUMBERS, "--method", "rtn", "--bits", 1)
    assert nats(done.out, text) != nats(rounded.out, text)


def test_verify_takes_a_model_that_moved(lowbit, save_model, float_model, tmp_path):
    path = tmp_path / "rounded.lowbit"
    assert lowbit("export", float_model, "--method", "float", "-o", path).status == 0
    assert lowbit("verify", path, "--against", save_model()).status == 0  # equal weights, another folder
