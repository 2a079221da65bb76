"""`eval` with tasks, papers' windows and another model."""

import json

import pytest

ROWS = [{"goal": f"Put out fire {n}", "choices": ["Use sand.", "Use much oil."], "label": n % 2} for n in range(6)]


@pytest.fixture(scope="module")
def piqa(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "piqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_tasks_and_texts_are_compared_with_another_model(lowbit, float_model, piqa, text, tmp_path):
    output = tmp_path / "out.json"
    done = lowbit(
        *("eval", float_model, "--method", "rtn", "--bits", 1, "--against", float_model, "--tasks", f"piqa={piqa}"),
        *("--data", text, "--length", 16, "--windows", 3, "-o", output),
    )
    assert done.status == 0, done.err
    record = json.loads(output.read_text())
    on_text = record["texts"][str(text)]
    assert on_text["tokens"] == 3 * 16
    assert on_text["against"]["agreement"]["kl"] > 0
    assert on_text["against"]["agreement"]["positions"] == 3 * 16
    assert on_text["against"]["nats"]["samples"] == 3
    metrics = record["tasks"]["piqa"]["metrics"]
    assert metrics.keys() == {"acc", "acc_norm", "acc_bytes"}
    test = record["tasks"]["piqa"]["against"]["acc"]
    assert test["samples"] == record["tasks"]["piqa"]["items"] == 6
    assert f"piqa  acc        {metrics['acc']['value']:.4f}" in done.out


def test_a_model_is_no_different_from_itself(lowbit, packed, piqa, tmp_path):
    output = tmp_path / "out.json"
    arguments = ("--tasks", f"piqa={piqa}", "--items", 4, "--against", packed, "-o", output)
    assert lowbit("eval", packed, "--backend", "jax", *arguments).status == 0
    test = json.loads(output.read_text())["tasks"]["piqa"]["against"]["acc"]
    assert (test["difference"], test["p_value"], test["samples"]) == (0.0, 1.0, 4)


def test_papers_windows_have_one_prediction_less(lowbit, float_model, text, tmp_path):
    output = tmp_path / "out.json"
    papers = ("--protocol", "papers", "--length", 32, "--windows", 2)
    assert lowbit("eval", float_model, "--data", text, *papers, "-o", output).status == 0
    assert json.loads(output.read_text())["texts"][str(text)]["tokens"] == 2 * 31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on"),
        (["--items", 3, "--data", "x.txt"], "--items is for --tasks"),
        (["--within-documents", "--tasks", "piqa=x.jsonl"], "--within-documents is for --data"),
        (["--tasks", "piqa"], "--tasks piqa names no file"),
        (["--tasks", "piqua=x.jsonl"], "unknown task 'piqua'"),
        (["--tasks", "piqa=absent.jsonl"], "absent.jsonl cannot be read"),
        (
            ["--data", "x.txt", "--against", "x", "--stride", 4],
            "--against compares predictions that see all of a window",
        ),
        (["--data", "x.txt", "--against", "x", "--within-documents"], "leave out --stride and --within-documents"),
        (["--data", "x.txt", "--protocol", "papers", "--stride", 4], "--protocol papers cuts windows in its own way"),
        (["--data", "x.txt", "--protocol", "papers"], "--length 2048 exceeds the model's 64 positions"),
        (["--data", "x.npy", "--protocol", "papers", "--length", 32], "--protocol papers reads text"),
    ],
)
def test_mistakes_are_told(lowbit, float_model, arguments, message):
    done = lowbit("eval", float_model, *arguments)
    assert done.status == 2
    assert message in done.err


def test_models_of_other_tokens_are_compared_by_tasks_alone(lowbit, float_model, save_model, text):
    other = save_model(tokenizer=False, vocab_size=64)
    done = lowbit("eval", float_model, "--against", other, "--data", text, "--length", 16)
    assert done.status == 2
    assert "have different tokens\n  -> compare them by --tasks alone" in done.err


def test_tasks_need_a_tokenizer(lowbit, save_model, piqa):
    done = lowbit("eval", save_model(tokenizer=False), "--tasks", f"piqa={piqa}")
    assert done.status == 2
    assert "tasks are text, and the model has no tokenizer" in done.err
