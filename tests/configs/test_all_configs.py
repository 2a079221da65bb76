"""Every config says what it is for and what to expect, and its smoke form trains two steps."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from lowbit.config import load, steps
from lowbit.errors import ConfigError
from lowbit.train import load_trained, run
from lowbit.train.activations import activation_rounding
from lowbit.train.quantization import quantization_rules

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FIELDS = ("Paper:", "Command:", "Hardware:", "Time:", "Expected:", "Variants:")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, 4096, 1000).astype(np.uint16))
    return path


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {"qat_smollm2", "qat_quickstart", "pretrain_quickstart"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_is_a_record(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    starts = [line.split(" ")[0] for line in text.splitlines()]
    for field in FIELDS:
        assert field in starts, f"{path.name} does not say: {field}"
    command = text[text.index("Command:") : text.index("Hardware:")]
    assert f"python -m lowbit train configs/{path.name}" in command


VARIANTS = [
    *(f"qat_smollm2.py:smoke,{name}" for name in ("bits=1", "bits=4", "recipe=plain")),
    "onebit_smollm2.py:smoke,recipe=paper",
    "llm_qat_smollm2.py:smoke,recipe=paper",
]


@pytest.mark.parametrize(
    "spec",
    [*(f"{path.name}:smoke" for path in CONFIGS), *(pytest.param(spec, marks=pytest.mark.slow) for spec in VARIANTS)],
)
def test_smoke_form_trains_two_steps(spec, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the paths of a config start
    config = load(
        f"configs/{spec}",
        [
            f"data.train={tokens}",
            f"data.valid={'' if spec in VARIANTS else tokens}",  # one evaluation a config is enough
            f"run_folder={tmp_path / 'run'}",
            "model.compute_dtype=float32",
            "log.progress=false",
        ],
    )
    if spec in VARIANTS and config.quant.method == "paretoq":
        config.quant.scale_init = "max"  # one search for a start is enough too: it is a third of what is traced
    assert steps(config) == 2
    result = run(config)
    assert result.finished
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    # An untrained model knows nothing: ln V nats, to within what random logits cost.
    assert losses[0] == pytest.approx(np.log(config.model.architecture.vocab_size), abs=0.2)
    assert load_trained(tmp_path / "run").step == 2


@pytest.mark.parametrize("name", ["qat_smollm2", "qat_quickstart"])
@pytest.mark.parametrize("bits", ["1", "1.58", "2", "3", "4"])
def test_every_width_has_a_recipe(name, bits):
    config = load(str(ROOT / f"configs/{name}.py") + f":bits={bits}")
    assert config.quant.bits == float(bits)
    assert config.optimizer.learning_rate > 0
    assert steps(config) > 10


def test_every_width_learns_from_the_float_model_unless_the_recipe_is_plain():
    spec = str(ROOT / "configs/qat_smollm2.py")
    for bits, batch_size in ((1, 8), (1.58, 8), (2, 8), (3, 16), (4, 16)):
        best, logits, plain = (load(f"{spec}:bits={bits},recipe={recipe}") for recipe in ("best", "logits", "plain"))
        assert best.distill.weight > 0
        assert best.train.batch_size == batch_size
        assert (best.distill.hidden_weight > 0) == (bits < 3)
        assert logits.distill.weight > 0
        assert logits.distill.hidden_weight == 0  # so that a cache can teach
        assert (plain.distill.weight, plain.train.batch_size) == (0.0, 32)
    with pytest.raises(ConfigError, match="no recipe 'plane'\n  -> did you mean 'plain'"):
        load(f"{spec}:recipe=plane")


def test_onebit_has_the_papers_recipe_and_a_comparison_with_paretoq():
    spec = str(ROOT / "configs/onebit_smollm2.py")
    best, paper = load(spec), load(f"{spec}:recipe=paper")
    assert (best.quant.method, best.quant.latent, best.model.linear_norm) == ("onebit", 0.0, False)
    assert (paper.quant.method, paper.quant.latent, paper.model.linear_norm) == ("onebit", 0.01, True)
    assert (paper.distill.weight, paper.distill.hidden_weight) == (1.0, pytest.approx(1 / (0.01 * 2048)))
    assert (paper.optimizer.learning_rate, paper.optimizer.b2, paper.optimizer.weight_decay) == (4e-4, 0.98, 0.01)
    assert load(f"{spec}:method=paretoq,losses=reverse,rate=1e-3").distill.divergence == "reverse"
    for wrong in ("losses=all", "method=rtn", "recipe=plain"):
        with pytest.raises(ConfigError, match=rf"no {wrong.split('=')[0]} '{wrong.split('=')[1]}'"):
            load(f"{spec}:{wrong}")


def test_llm_qat_has_the_papers_settings_and_its_recipe():
    spec = str(ROOT / "configs/llm_qat_smollm2.py")
    for setting, grid in (("8-8-8", "llmqat"), ("4-8-8", "paretoq"), ("4-8-4", "paretoq"), ("16-8-16", "float")):
        config = load(f"{spec}:setting={setting}")
        found = int(config.quant.bits), config.activations.bits, config.activations.kv_bits
        assert "-".join(map(str, found)) == setting
        assert config.quant.method == grid
        assert (config.activations.kv_rotated, config.activations.variant) == (True, "fixed")
        quantization_rules(config.quant)
        activation_rounding(config.activations)
    paper = load(f"{spec}:recipe=paper")
    assert (paper.quant.method, paper.quant.variant, paper.activations.variant) == ("llmqat", "reference", "reference")
    assert (paper.activations.kv_rotated, paper.activations.kv_per_head, paper.distill.weight) == (False, False, 1.0)
    down = dict(activation_rounding(load(f"{spec}:setting=4-4-4,down=8").activations).inputs)
    assert (down["layers/mlp/down_proj"].bits, down["layers/attn/q_proj"].bits) == (8, 4)
    with pytest.raises(ConfigError, match="setting '4-8' is not of the form W-A-KV\n  -> give three widths"):
        load(f"{spec}:setting=4-8")


def test_a_width_without_recipe_is_refused():
    with pytest.raises(ConfigError, match="no recipe for bits 5"):
        load(str(ROOT / "configs/qat_smollm2.py") + ":bits=5")
