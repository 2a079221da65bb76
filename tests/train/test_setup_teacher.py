"""A teacher from the config: found, laid out, rebuilt at resume, and refused where it does not fit."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import CheckpointError, ConfigError, ModelError, TokenizerError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.train import load_trained, prepare, run, sharding
from lowbit.train.run_folder import RunFolder
from lowbit.train.sources import float_origin, turns
from lowbit.train.step import make_train_step
from lowbit.train.teacher import fingerprint, load_teacher
from lowbit.tree import fake_quant, flatten, unflatten

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

EPS = float(jnp.finfo(jnp.float32).eps)
SIZES = LlamaConfig(64, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64)


def save_random(folder, seed=0, tokenizer=None, **changes):
    cfg = dataclasses.replace(SIZES, **changes)
    rng = np.random.default_rng(seed)
    flat = {path: rng.normal(0.0, 0.3, shape).astype(np.float32) for path, shape in param_shapes(cfg).items()}
    files = {} if tokenizer is None else {"tokenizer.json": json.dumps(tokenizer).encode()}
    save_hf(folder, cfg, unflatten(flat), files, dtype="float32")
    return str(folder)


@pytest.fixture
def source(tmp_path):
    return save_random(tmp_path / "float")


def losses(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["cross_entropy"], row["grad_norm"]) for row in rows]


def test_the_float_model_that_the_run_starts_from_teaches(tiny_config, source):
    experiment = prepare(tiny_config(f"model.source={source}", "distill.weight=0.5"))
    teacher = flatten(experiment.constants["teacher"])
    for path, start in flatten(experiment.params).items():
        dtype = jnp.float32 if path.endswith("norm/scale") else jnp.bfloat16
        np.testing.assert_array_equal(teacher[path], start.astype(dtype))
    assert experiment.teacher == fingerprint(teacher)
    assert prepare(tiny_config(f"model.source={source}")).constants == {}


def test_its_loss_is_the_mix_of_both_terms(tiny_config, source, tmp_path):
    other = save_random(tmp_path / "other", seed=1, hidden_size=48, num_layers=1)
    settings = (f"model.source={source}", f"distill.teacher={other}", "distill.dtype=float32", "distill.temperature=2")
    experiment = prepare(tiny_config(*settings, "distill.weight=0.25", "quant.scale_init=max"))
    state = experiment.initial_state()
    batch = jnp.asarray(experiment.train.batch(0))
    loss, metrics = jax.jit(experiment.objective)(state.variables, batch)
    own = {name: state.variables[name] for name in ("params", "quant", "grid")}
    logits = experiment.model.apply(own, batch[:, :-1])
    teacher = load_teacher(experiment.config, None)
    wise = experiment.model.clone(cfg=teacher.cfg, transform=lambda cls, prefix: cls)
    of_teacher = {"params": jax.tree.map(jnp.asarray, teacher.params)}
    taught = jax.nn.log_softmax(wise.apply(of_teacher, batch[:, :-1]) / 2)
    divergence = jnp.sum(jnp.exp(taught) * (taught - jax.nn.log_softmax(logits / 2)), axis=-1).mean()
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[:, 1:, None], axis=-1).mean()
    # Means of 256 sums of 64 float32 terms, in another order.
    np.testing.assert_allclose(metrics["cross_entropy"], nll, rtol=64 * EPS)
    np.testing.assert_allclose(loss, 0.75 * nll + 0.25 * 4 * divergence, rtol=64 * EPS)


def test_a_sharded_step_with_a_teacher_equals_that_of_one_device(tiny_config, source):
    # eps=1 keeps Adam smooth where gradients are near 0; the tolerance is that of tests/train/test_sharding.py.
    prepared = prepare(
        tiny_config(f"model.source={source}", "distill.weight=0.5", "optimizer.eps=1.0", "quant.scale_init=max")
    )
    tolerance = 5 * math.sqrt(256 * 60) * EPS
    start = jax.tree.map(np.asarray, prepared.initial_state())
    results = []
    for sizes, devices in (((1, 1, 1), 1), ((1, 4, 2), 8)):
        mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), jax.devices()[:devices])
        experiment = dataclasses.replace(prepared, mesh=mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state())
        assert places.constants["teacher"] == places.params["params"]
        step = sharding.jit_train_step(make_train_step(experiment.objective, experiment.optimizer), mesh, places)
        state = sharding.shard_state(start, places)
        after, metrics = step(state, sharding.shard_batch(mesh, experiment.train.batch(0)))
        results.append((jax.tree.map(np.asarray, after.params), jax.device_get(metrics)))
    (wanted, wanted_metrics), *others = results
    rate = float(wanted_metrics["learning_rate"])
    for got, metrics in others:
        for name in ("loss", "cross_entropy", "grad_norm"):
            np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=tolerance)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=EPS, atol=rate * tolerance), got, wanted)


def test_a_resumed_run_rebuilds_its_teacher_which_no_checkpoint_holds(tiny_config, source, tmp_path):
    def make(name):
        settings = ("distill.weight=0.5", "data.valid=", "checkpoint.every_steps=2", "train.tokens=1024")
        return tiny_config(f"model.source={source}", f"run_folder={tmp_path / name}", *settings)

    whole = run(make("whole")).run_folder
    saved = [file.read_bytes() for file in (whole / "checkpoints" / "4").rglob("*") if file.is_file()]
    assert any(b"down_proj" in content for content in saved)
    assert not any(b"teacher/" in content or b"teacher." in content for content in saved)

    broken = shutil.copytree(whole, tmp_path / "broken")
    (broken / "result.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "4")
    run(make("broken"), resume=True)
    assert losses(broken) == losses(whole)
    assert [step for step, *_ in losses(whole)] == [1, 2, 3, 4]
    ours, theirs = load_trained(whole), load_trained(broken)
    jax.tree.map(np.testing.assert_array_equal, (ours.params, ours.state), (theirs.params, theirs.state))

    (broken / "result.json").unlink()
    shutil.rmtree(source)
    save_random(Path(source), seed=7)
    with pytest.raises(
        CheckpointError, match=r"checkpoint 4 in .* was made with another teacher\n  -> resume with the"
    ):
        run(make("broken"), resume=True)


@pytest.fixture
def name_run(tiny_config, tmp_path):
    """Returns name(folder, *overrides) -> a run folder that says where it started and holds no checkpoint yet."""

    def name(folder, *overrides):
        config = tiny_config(f"run_folder={tmp_path / folder}", *overrides)
        RunFolder(tmp_path / folder).create(config, SIZES, {})
        return str(tmp_path / folder)

    return name


def test_a_run_goes_on_from_the_masters_of_another_and_their_chain_has_one_teacher(tiny_config, source, name_run):
    config = tiny_config(f"model.source={source}", "quant.bits=4", "data.valid=", "train.tokens=256")
    first = str(run(config).run_folder)
    before = load_trained(first)
    second = name_run("second", f"model.source={first}", "quant.bits=3")
    assert float_origin(second) == source

    config = tiny_config(f"model.source={first}", "quant.bits=2", "distill.weight=0.5")
    experiment = prepare(config)
    jax.tree.map(np.testing.assert_array_equal, experiment.params, jax.tree.map(np.asarray, before.params))
    taught = prepare(tiny_config(f"model.source={source}", "distill.weight=0.5"))
    assert experiment.teacher == taught.teacher

    # A run that is named as the teacher teaches what it predicts.
    config.distill.update({"teacher": first, "dtype": "float32"})
    predicted = fake_quant(before.rules, before.params, before.state)
    jax.tree.map(np.testing.assert_array_equal, load_teacher(config, None).params, jax.tree.map(np.asarray, predicted))


def test_where_a_chain_of_runs_began(name_run, tmp_path):
    assert float_origin("some/model") == "some/model"
    trained = name_run("float", "quant.method=float", "model.source=some/model")
    assert float_origin(trained) == trained
    with pytest.raises(ConfigError, match=r"scratch was quantized from its first step.*\n  -> name a teacher"):
        float_origin(name_run("scratch"))
    a = name_run("a", f"model.source={tmp_path / 'b'}")
    b = name_run("b", f"model.source={a}")
    with pytest.raises(ConfigError, match=rf"the runs {a}, {b} name each other as their start"):
        float_origin(a)


def test_hidden_states_of_turned_models_are_not_compared(tiny_config, source, name_run):
    def attempt(start, *settings):
        return load_teacher(tiny_config(f"model.source={start}", "distill.hidden_weight=1", *settings), None)

    with pytest.raises(
        ConfigError, match=r"model\.rotate turns the student's alone\n  -> set distill\.hidden_weight=0"
    ):
        prepare(tiny_config(f"model.source={source}", "distill.hidden_weight=1", "model.rotate=true"))
    turned = name_run("turned", f"model.source={source}", "model.rotate=true", "seed=3")
    later = name_run("later", f"model.source={turned}")
    assert (turns(source), turns(turned), turns(later)) == ((), (3,), (3,))
    with pytest.raises(ConfigError, match=r"turned those of only one of .*later and the teacher .*float, or each in"):
        attempt(later)
    with pytest.raises(ConfigError, match="turned those of only one of"):
        attempt(source, f"distill.teacher={later}")
    assert attempt(source).cfg == SIZES


def test_a_packed_file_is_no_float_model(tiny_config, name_run, tmp_path):
    packed, published = tmp_path / "m.lowbit", tmp_path / "m.gguf"
    packed.touch()
    published.touch()
    assert float_origin(str(published)) == str(published)
    for start in (str(packed), name_run("tuned", f"model.source={packed}")):
        with pytest.raises(ConfigError, match=r"m\.lowbit is a packed file, .*\n  -> name a teacher: distill\.teacher"):
            load_teacher(tiny_config(f"model.source={start}", "distill.weight=1"), None)


def test_teachers_that_do_not_fit_are_refused(tiny_config, source, tmp_path):
    def attempt(*settings):
        return prepare(tiny_config(f"model.source={source}", "distill.weight=0.5", *settings))

    other = save_random(tmp_path / "wide", vocab_size=80)
    with pytest.raises(ModelError, match=r"wide has a vocabulary of 80 tokens, the student one of 64\n  -> choose a"):
        attempt(f"distill.teacher={other}")
    short = save_random(tmp_path / "short", max_positions=16)
    with pytest.raises(ModelError, match=r"short has 16 positions, and train\.sequence_length is 32"):
        attempt(f"distill.teacher={short}")
    with pytest.raises(ModelError, match="there is no model at absent"):
        attempt("distill.teacher=absent")
    with pytest.raises(ConfigError, match=r"unknown distill\.dtype 'float8'"):
        attempt("distill.dtype=float8")
    with pytest.raises(ConfigError, match=r"distill\.weight=1\.5\n  -> give a number from 0 to 1"):
        attempt("distill.weight=1.5")
    with pytest.raises(ConfigError, match=r"distill\.temperature=0\.0\n  -> give a finite number above 0"):
        attempt("distill.temperature=0")
    with pytest.raises(ConfigError, match="a run from scratch starts from no model to learn from"):
        prepare(tiny_config("distill.weight=0.5"))
    thin = save_random(tmp_path / "thin", num_heads=3, num_kv_heads=1)
    with pytest.raises(ModelError, match="cuts through heads"):
        attempt(f"distill.teacher={thin}", "mesh.tensor=2")


def test_a_teacher_of_the_same_size_with_other_tokens_is_refused(tiny_config, tmp_path):
    def tokenizer(letters):
        vocab = {letter: i for i, letter in enumerate(letters)}
        return {"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": []}}

    letters = [chr(97 + i) for i in range(64)]
    student = save_random(tmp_path / "student", tokenizer=tokenizer(letters))
    teacher = save_random(tmp_path / "teacher", tokenizer=tokenizer(["b", "a", *letters[2:]]))
    config = tiny_config(f"model.source={student}", f"distill.teacher={teacher}", "distill.weight=0.5")
    with pytest.raises(TokenizerError, match=r"'b' is token 0 of the teacher .*teacher, and token 1 of the student"):
        prepare(config)
