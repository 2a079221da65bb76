"""What a config is turned into: pretrained weights, texts, frozen parameters, groups."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from lowbit.errors import ConfigError, DataError, RuleError, TokenizerError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.models.rotation import rotate, rotated_config
from lowbit.train import prepare
from lowbit.train.optimization import make_scale_schedule, parameter_groups
from lowbit.train.optimizers import Group
from lowbit.train.schedules import make_schedule
from lowbit.train.step import make_train_step
from lowbit.tree import flatten, unflatten

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

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


def test_a_run_may_start_from_turned_weights_that_predict_the_same(tiny_config, pretrained):
    source, cfg, params = pretrained
    settings = (f"model.source={source}", "quant.method=float", "quant.float_dtype=float32")
    plain, turned = prepare(tiny_config(*settings)), prepare(tiny_config(*settings, "model.rotate=true"))
    assert turned.cfg == rotated_config(cfg)
    jax.tree.map(np.testing.assert_array_equal, turned.params, rotate(params, cfg, seed=0))
    batch = jnp.asarray(plain.train.batch(0))
    losses = [e.objective(e.initial_state().variables, batch)[0] for e in (plain, turned)]
    # As in tests/models/test_rotation.py, of a loss of a few nats whose logits are that size or smaller.
    np.testing.assert_allclose(losses[1], losses[0], rtol=5 * np.sqrt(2 * 20 * 64) * 2**-23)
    with pytest.raises(ConfigError, match=r"model\.rotate is set, and a run from scratch has no weights to turn"):
        prepare(tiny_config("model.rotate=true"))


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
    with pytest.raises(DataError, match=r"tokens\.npy holds tokens, among texts"):
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
    config.optimizer.frozen = ("[",)
    with pytest.raises(RuleError, match=r"rule '\[' is no regular expression"):
        parameter_groups(config.optimizer, shapes)


def test_scales_may_follow_a_schedule_of_their_own(tiny_config):
    def shares(*settings):
        config = tiny_config("train.tokens=2560", "schedule.warmup=0.2", *settings)
        run = make_schedule("cosine", 10, 0.2)
        own = make_scale_schedule(config, run)
        return None if own is None else [round(float(own(jnp.int32(step))), 3) for step in range(10)]

    assert shares() is None
    assert shares("optimizer.scale_schedule=constant") == [0.5] + 9 * [1.0]
    assert shares("optimizer.scale_schedule=linear")[2:5] == [1.0, 0.875, 0.75]
    assert shares("optimizer.scale_schedule=constant", "optimizer.scale_until=0.3") == [0.5, 1.0, 1.0] + 7 * [0.0]
    assert shares("optimizer.scale_until=0.1") == [0.5] + 9 * [0.0]
    with pytest.raises(ConfigError, match=r"no optimizer\.scale_schedule 'sane'\n  -> did you mean 'same'"):
        prepare(tiny_config("optimizer.scale_schedule=sane", "model.source=absent/model"))


def test_scales_stand_still_after_their_share_of_the_steps(tiny_config):
    experiment = prepare(tiny_config("train.tokens=1024", "optimizer.scale_until=0.5", "optimizer.weight_decay=0.1"))
    step = jax.jit(make_train_step(experiment.objective, experiment.optimizer))
    states = [experiment.initial_state()]
    for i in range(4):
        states.append(step(states[-1], jnp.asarray(experiment.train.batch(i)))[0])
    scales = [state.params["quant"]["layers"]["mlp"]["up_proj"]["kernel"]["scale"] for state in states]
    weights = [state.params["params"]["layers"]["mlp"]["up_proj"]["kernel"] for state in states]
    assert [bool((a != b).any()) for a, b in itertools.pairwise(scales)] == [True, True, False, False]
    assert all((a != b).any() for a, b in itertools.pairwise(weights))


def test_muon_is_one_line_and_an_unknown_optimizer_is_refused_before_the_model_is_loaded(tiny_config):
    experiment = prepare(tiny_config("optimizer.name=muon", "mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"))
    state = experiment.abstract_state()
    layers = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 3 and leaf.shape[1] > 1]
    assert len(layers) == 7  # one momentum a kernel, laid out as the kernels are
    assert all("tensor" in leaf.sharding.spec for leaf in layers)
    with pytest.raises(ConfigError, match="no optimizer 'moun'\n  -> did you mean 'muon'"):
        prepare(tiny_config("optimizer.name=moun", "model.source=absent/model"))


def test_a_group_that_does_not_divide_is_refused_with_the_paths(tiny_config):
    with pytest.raises(RuleError, match=r"layers/attn/q_proj/kernel .*group of 7 does not divide the 32 inputs"):
        prepare(tiny_config("quant.granularity=7"))


def test_text_files_called_alike_are_refused(tiny_config):
    with pytest.raises(ConfigError, match="two files called 'a'"):
        prepare(tiny_config("data.valid=x/a.npy,y/a.npy"))


@pytest.fixture
def make_tokenizer(tmp_path):
    """Returns make(byte_fallback) -> folder of a Unigram tokenizer of 64 tokens, without a config beside it."""

    def make(byte_fallback=False):
        vocab = [("<unk>", 0.0), *((chr(97 + i), -float(i + 1)) for i in range(26))]
        vocab += [(f"<0x{i:02X}>", -50.0) for i in range(64 - len(vocab))]
        model = tokenizers.models.Unigram(vocab, 0, byte_fallback)
        tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    return make


def test_token_files_need_neither_a_separator_nor_bytes(tiny_config, make_tokenizer, tmp_path):
    folder = make_tokenizer()
    experiment = prepare(tiny_config(f"model.tokenizer={folder}"))
    assert experiment.byte_lengths is None
    assert "tokenizer.json" in experiment.tokenizer_files
    assert prepare(tiny_config(f"model.tokenizer={make_tokenizer(byte_fallback=True)}")).byte_lengths is not None
    text = tmp_path / "text.txt"
    text.write_text("abc")
    with pytest.raises(TokenizerError, match="does not say which token ends a document"):
        prepare(tiny_config(f"model.tokenizer={folder}", f"data.train={text}"))
    with pytest.raises(TokenizerError, match="64 tokens, the model's vocabulary 80"):
        prepare(tiny_config(f"model.tokenizer={folder}", "model.architecture.vocab_size=80"))


def test_too_short_a_text_is_named(tiny_config, tmp_path):
    text = tmp_path / "haiku.txt"
    text.write_text("An old silent pond.")
    settings = (f"data.valid={text}", f"model.tokenizer={TOKENIZER}", "model.architecture.vocab_size=4096")
    with pytest.raises(DataError, match=r"haiku\.txt holds \d+ tokens, and a window of 32 needs at least"):
        prepare(tiny_config(*settings))


def test_all_files_of_a_tokenizer_are_kept(tiny_config, make_tokenizer):
    folder = make_tokenizer()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert set(prepare(tiny_config(f"model.tokenizer={folder}")).tokenizer_files) == {
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_an_override_quantizes_the_embedding_by_rows(tiny_config):
    config = tiny_config()
    config.quant.overrides = (("embed/embedding", {"bits": 4.0}),)
    state = prepare(config).abstract_state()
    assert state.params["quant"]["embed"]["embedding"]["scale"].shape == (1, 64)


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=-1",
        "seed=99999999999999999999",
        "optimizer.b1=2",
        "optimizer.b1=1.0",
        "optimizer.b2=-0.1",
        "optimizer.momentum=1",
        "optimizer.eps=-1",
        "optimizer.eps=0",
        "optimizer.learning_rate=inf",
        "optimizer.learning_rate=-1",
        "optimizer.weight_decay=inf",
        "optimizer.clip_norm=0",
        "model.architecture.rope_theta=0",
        "model.architecture.rms_norm_eps=-1",
        "checkpoint.every_minutes=0",
        "train.accumulate=0",
        "log.every_steps=0",
    ],
)
def test_numbers_out_of_range_are_refused_before_the_model_is_loaded(tiny_config, assignment):
    key = assignment.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}=.*\n  -> give "):
        prepare(tiny_config("model.source=absent/model", assignment))


def test_tuples_of_other_things_are_refused(tiny_config):
    for key, value in (("data.train", "(1,)"), ("quant.layer_bits", "('2',)"), ("optimizer.frozen", "(True,)")):
        with pytest.raises(ConfigError, match=rf"{key} holds"):
            prepare(tiny_config(f"{key}={value}"))
