"""What a config is turned into: pretrained weights, texts, frozen parameters, groups."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lowbit.errors import ConfigError, RuleError, TokenizerError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.train import prepare
from lowbit.train.optimizers import Group
from lowbit.train.setup import parameter_groups
from lowbit.tree import flatten, unflatten

TOKENIZER = Path(__file__).parents[2] / "assets" / "quickstart" / "model"


@pytest.fixture
def pretrained(tmp_path):
    """A random model in a Hugging Face folder."""
    cfg = LlamaConfig(64, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64)
    rng = np.random.default_rng(0)
    shapes = param_shapes(cfg)
    params = unflatten({path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})
    save_hf(tmp_path / "pretrained", cfg, params, {}, dtype="float32")
    return str(tmp_path / "pretrained"), cfg, params


def test_a_run_starts_from_pretrained_weights(tiny_config, pretrained):
    source, cfg, params = pretrained
    experiment = prepare(tiny_config(f"model.source={source}"))
    assert experiment.cfg == cfg
    state = experiment.initial_state()
    for path, wanted in flatten(params).items():
        np.testing.assert_array_equal(np.asarray(flatten(state.params["params"])[path]), wanted)
    scales = flatten(state.params["quant"])
    assert set(scales) == {f"{path}/scale" for path in param_shapes(cfg) if path.endswith("_proj/kernel")}


def test_texts_go_through_the_tokenizer_of_the_model(tiny_config, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time there was a very small model. " * 100)
    settings = (f"data.train={text}", f"data.valid={text}", "evaluation.windows=0")
    experiment = prepare(tiny_config(*settings, f"model.tokenizer={TOKENIZER}", "model.architecture.vocab_size=4096"))
    assert "tokenizer.json" in experiment.tokenizer_files
    windows = experiment.valid["story"]
    # All bytes of the text, and none for the token at its end.
    assert experiment.byte_lengths[windows.arrays[0]].sum() == len(text.read_bytes())
    with pytest.raises(TokenizerError, match="4,096 tokens, the model's vocabulary 64"):
        prepare(tiny_config(*settings, f"model.tokenizer={TOKENIZER}"))
    with pytest.raises(ConfigError, match=r"tokens\.npy is a token file among texts"):
        prepare(tiny_config(f"data.train={tiny_config().data.train[0]},{text}"))


def test_frozen_parameters_are_constants(tiny_config):
    experiment = prepare(tiny_config("optimizer.frozen=params/.*"))
    state = jax.eval_shape(experiment.make_state, experiment.params)
    assert list(state.params) == ["quant"]
    assert set(flatten(state.constants["params"])) == set(param_shapes(experiment.cfg))
    # Two moments for each scale, and for nothing else.
    assert len([x for x in jax.tree.leaves(state.opt_state) if x.ndim]) == 2 * len(jax.tree.leaves(state.params))


def test_groups_come_from_the_config(tiny_config):
    shapes = {
        "params": {"norm": {"scale": 0}, "embed": {"embedding": 0}},
        "quant": {"embed": {"embedding": {"scale": 0}}},
    }
    config = tiny_config("optimizer.weight_decay=0.1", "optimizer.scale_learning_rate=0.5", "optimizer.frozen=.*norm.*")
    assert parameter_groups(config.optimizer, shapes) == {
        "params/norm/scale": Group(frozen=True),
        "params/embed/embedding": Group(weight_decay=0.1),
        "quant/embed/embedding/scale": Group(learning_rate=0.5),
    }
    config.optimizer.frozen = ("parms/.*",)
    with pytest.raises(RuleError, match=r"rule 'parms/\.\*' matches nothing"):
        parameter_groups(config.optimizer, shapes)


def test_a_group_that_does_not_divide_is_refused_with_the_paths(tiny_config):
    with pytest.raises(RuleError, match=r"layers/attn/q_proj/kernel .*group of 7 does not divide the 32 inputs"):
        prepare(tiny_config("quant.granularity=7"))


def test_text_files_called_alike_are_refused(tiny_config):
    with pytest.raises(ConfigError, match="two files called 'a'"):
        prepare(tiny_config("data.valid=x/a.npy,y/a.npy"))
