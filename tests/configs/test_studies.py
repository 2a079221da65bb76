"""Every study has points that can be trained, and trains in a small form."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lowbit.cli import main
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.report.distances import distances
from lowbit.report.sweep import read_sweep
from lowbit.sweep import load_sweep, make_points, run_sweep
from lowbit.train.teacher import asks_for_teacher, check_distill
from lowbit.tree import unflatten

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"
STUDIES = sorted(path.stem for path in SWEEPS.glob("*.py") if path.stem != "quickstart")
OF_THE_SHIPPED_MODEL = ("coreset", "efqat", "quickstart_teacher", "scale_starts")
FIELDS = ("Command:", "Hardware:", "Time:", "Expected:", "Record:")
SMALL = (
    "model.source=tiny", "data.valid=train.npy", "train.tokens=256", "train.batch_size=8", "train.sequence_length=16",
    "train.loss_chunks=1", "evaluation.windows=8", "evaluation.batch_size=8", "log.progress=false",
    "log.recorder_every_steps=0", "model.compute_dtype=float32",
)  # fmt: skip
NO_SEARCH = ("quant.scale_init=max",)
"""How scales start is no part of these studies, and a search for them a third of what is traced."""
TINY = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "max_position_embeddings": 32, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, and what the studies find where they run: tokens, and a teacher's cache."""
    folder = tmp_path_factory.mktemp("studies")
    cfg = LlamaConfig.from_hf(TINY)
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(path.endswith("scale"), 0.1, shape) for path, shape in param_shapes(cfg).items()}
    params = unflatten({path: w.astype(np.float32) for path, w in flat.items()})
    save_hf(folder / "tiny", cfg, params, {}, dtype="float32")
    np.save(folder / "train.npy", rng.integers(0, 64, 400).astype(np.uint16))
    (folder / "tokens").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "configs").symlink_to(ROOT / "configs")
        overrides = [f"--config.{text}" for text in (*SMALL, "data.train=train.npy")]
        config = "configs/qat_smollm2.py:bits=2,recipe=logits"
        assert main(["cache-teacher", config, "--k", "8", "-o", "caches/smollm2_k8", *overrides]) == 0
    return folder


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_is_and_has_a_float_model_among_its_points(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    docstring = ast.get_docstring(ast.parse((SWEEPS / f"{name}.py").read_text()))
    assert all(f"\n{field}" in docstring for field in FIELDS)
    assert f"configs/sweeps/{name}.py" in docstring
    sweep = load_sweep(f"configs/sweeps/{name}.py")
    points = make_points(sweep, tmp_path, [] if name in OF_THE_SHIPPED_MODEL else ["model.source=tiny"])
    for point in points:
        check_distill(point.config)
    assert [point.config.quant.method for point in points].count("float") == 1
    assert points[-1].config.quant.method == "float"
    assert not asks_for_teacher(points[-1].config)
    tokens = {point.config.train.tokens for point in points}
    assert tokens == {150_000 if name in OF_THE_SHIPPED_MODEL else 10_000_000}  # equal
    assert len(points) <= 9  # ten minutes on one GPU


CHOSEN = {
    "distillation_losses": (3, 5),
    "teacher_cache": (1,),
    "onebit_start": (5,),
    "onebit_losses": (5,),
    "finetuning_2_bits": (1, 2),
}
"""Points of a kind of their own; others differ from them, or from those of tests/train, in a number."""
SLOW = ("distillation_losses", "onebit_losses", "finetuning_2_bits")
"""Configs of their kinds are trained by test_all_configs, and a sweep of each form of distillation's inputs is left."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CHOSEN]
)
def test_a_study_trains_in_a_small_form(name, place, tmp_path, monkeypatch, compiled_once):
    monkeypatch.chdir(place)
    sweep = load_sweep(f"configs/sweeps/{name}.py")
    small = dataclasses.replace(sweep, points=[sweep.points[i] for i in CHOSEN[name]])
    overrides = (*SMALL, "data.train=train.npy", *(() if "onebit" in name else NO_SEARCH))
    if "finetuning" in name:
        overrides = (*SMALL, "data.train=train.npy", "quant.granularity=8")
        small.points[0]["adapters.rank"] = 4
    assert run_sweep(small, tmp_path / "sweep", overrides=overrides, say=lambda line: None)
    results = read_sweep(tmp_path / "sweep" / "sweep.json")
    assert [point.error for point in results.points] == [None] * len(small.points)
    if small.points[-1].get("quant.method") == "float":
        assert len(distances(results)) == len(small.points) - 1


def test_text_that_a_model_wrote_is_trained_on(place, tmp_path, monkeypatch, compiled_once):
    """The study of self-generated text, on a folder as `synthesize` leaves it."""
    monkeypatch.chdir(place)
    tokens = np.random.default_rng(1).integers(0, 64, 400).astype(np.uint16)
    digest = {"file": "shard-00000.npy", "tokens": 400}
    folder = place / "tokens" / "self"
    folder.mkdir()
    np.save(folder / "shard-00000.npy", tokens)
    size = (folder / "shard-00000.npy").stat().st_size
    manifest = {
        "format": "lowbit-tokens", "version": 1, "tokenizer": "t", "vocab_size": 64, "separator": 0, "part": "all",
        "documents": 1, "tokens": 400, "text_bytes": 1, "options": {}, "sources": [{"synthetic": True}],
        "shards": [{**digest, "size": size, "sha256": "0"}], "lowbit_version": "0",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sweep = load_sweep("configs/sweeps/self_generated.py")
    small = dataclasses.replace(sweep, points=sweep.points[1:2])
    assert run_sweep(small, tmp_path / "sweep", overrides=(*SMALL, *NO_SEARCH), say=lambda line: None)
    (point,) = read_sweep(tmp_path / "sweep" / "sweep.json").points
    assert point.error is None
    assert point.settings["data.train"] == ["tokens/self"]
