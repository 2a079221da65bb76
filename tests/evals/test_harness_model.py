"""lm-evaluation-harness drives a model, and agrees with `lowbit.evals.tasks`. Needs the extra `harness`."""

import json
from pathlib import Path

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from lowbit.cli.harness import HarnessSource, register  # noqa: E402
from lowbit.cli.usage import UsageError  # noqa: E402
from lowbit.errors import ConfigError, TokenizerError  # noqa: E402
from lowbit.evals import jax_predictor  # noqa: E402
from lowbit.evals.encoding import first_token  # noqa: E402
from lowbit.evals.harness import HarnessModel  # noqa: E402
from lowbit.evals.scoring import BatchScorer, Request  # noqa: E402
from lowbit.evals.tasks import evaluate_task, read_items, task  # noqa: E402

# The harness and what it imports warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("default")

MODEL = str(Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model")
ROWS = [
    {"goal": goal, "choices": [one, two], "label": label}
    for goal, one, two, label in (
        ("How do I put out a fire?", "Throw sand on it.", "Throw oil on it, and wait.", 0),
        ("To cross the river", "take the boat", "take the old stone bridge by the mill", 1),
        ("Keep bread fresh", "in a dry box ", "in the rain", 0),
    )
]


@pytest.fixture(scope="module")
def model():
    return HarnessModel(jax_predictor.pretrained_predictor(MODEL), batch_size=4)


def instance(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_harness_and_tasks_agree(model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    metrics = "".join(f"  - metric: {name}\n    aggregation: mean\n" for name in task("piqa").metrics)
    (tmp_path / "rows.yaml").write_text(
        f"task: rows\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {path}\n"
        f"  cache_dir: {tmp_path}\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "Question: {{goal}}\\nAnswer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        f"metric_list:\n{metrics}",
        encoding="utf-8",
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=["rows"], task_manager=manager, bootstrap_iters=1)
    scorer = BatchScorer(model.scorer.predictor, 2)
    ours = evaluate_task(scorer, model.text, model.prefix, task("piqa"), read_items(path, task("piqa").read))
    for name, metric in ours.metrics.items():
        assert found["results"]["rows"][f"{name},none"] == metric.value
        assert found["results"]["rows"][f"{name}_stderr,none"] == pytest.approx(metric.stderr)
    theirs = [[resp[0] for resp in sample["filtered_resps"]] for sample in found["samples"]["rows"]]
    # Another batch size is another program: float32 sums of some 15 tokens' nats in another order.
    np.testing.assert_allclose(np.array(theirs), np.array(ours.log_likelihoods), rtol=1e-5)


def test_rolling_likelihood_covers_the_text_once(model, monkeypatch):
    text = "The ship lay in the bay, and the men sat on the deck and spoke of home. " * 2
    ids = model.tok_encode(text)
    most = 32
    monkeypatch.setattr(model.scorer, "max_positions", most)
    assert most < len(ids) <= 2 * most
    (got,) = model.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    first = Request((first_token(model.scorer.predictor.cfg, model.text),), tuple(ids[:most]))
    rest = Request(tuple(ids[len(ids) - most - 1 : most]), tuple(ids[most:]))
    expected = model.scorer.log_likelihoods([first, rest])
    assert got == pytest.approx(sum(found.log_likelihood for found in expected), rel=1e-6)


def test_generation_is_greedy_and_ends_at_stop_strings(model):
    (free,) = model.generate_until([instance("generate_until", "The ship lay in", {"max_gen_toks": 8, "until": []})])
    assert free
    stop = free[len(free) // 2]
    settings = {"max_gen_toks": 8, "until": [stop], "do_sample": False}
    (stopped,) = model.generate_until([instance("generate_until", "The ship lay in", settings)])
    assert stopped == free.partition(stop)[0]
    with pytest.raises(ConfigError, match="only greedy decoding"):
        model.generate_until([instance("generate_until", "The ship", {"do_sample": True, "temperature": 1.0})])


def test_sources_are_made_of_model_args():
    register()
    cls = lm_eval.api.registry.get_model("lowbit")
    assert cls is HarnessSource
    made = cls.create_from_arg_string(f"source={MODEL},method=rtn,bits=4", {"batch_size": 2})
    assert made.scorer.batch_size == 2
    assert made.tok_encode("The ship")
    with pytest.raises(UsageError, match="a batch size of 'auto'"):
        HarnessSource(MODEL, batch_size="auto")
    with pytest.raises(UsageError, match="device and max_batch_size"):
        HarnessSource(MODEL, device="cuda")


def test_a_model_without_a_tokenizer_is_refused(model):
    with pytest.raises(TokenizerError, match="the model has no tokenizer"):
        HarnessModel(model.scorer.predictor._replace(tokenizer_files={}))
