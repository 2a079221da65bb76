"""A OneBit run with all that the reference adds: norms, latent weights, and losses between insides."""

import json

import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.export import pack_model, verify
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.train import load_trained, prepare, run
from lowbit.tree import flatten, unflatten

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

SIZES = LlamaConfig(64, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64)
PAPER = (
    "model.linear_norm=true",
    "quant.method=onebit",
    "quant.scale_init=mse",
    "quant.latent=0.01",
    "distill.weight=1",
    "distill.hidden_weight=0.05",
    "distill.attention_weight=0.1",
    "data.valid=",
    "train.tokens=512",
)


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(0.0, 0.1, shape).astype(np.float32) for path, shape in param_shapes(SIZES).items()}
    save_hf(tmp_path / "float", SIZES, unflatten(flat), {}, dtype="float32")
    return str(tmp_path / "float")


def test_it_trains_logs_every_loss_and_ships_as_it_trained(tiny_config, source):
    config = tiny_config(f"model.source={source}", *PAPER)
    experiment = prepare(config)
    start = experiment.initial_state().variables
    for path, w in flatten(start["params"]).items():
        if path.endswith("_proj/kernel"):
            np.testing.assert_array_equal(np.unique(np.abs(w)), np.float32(0.01))
            np.testing.assert_array_equal(np.sign(w), np.sign(flatten(experiment.params)[path]))
            # The vectors are of the weights as they were: of their size, 0.1, not of the latent ones'.
            scales = flatten(start["quant"])
            product = np.mean(scales[f"{path}/scale"]) * np.mean(scales[f"{path}/in_scale"])
            assert 0.05 < product < 0.1

    folder = run(config).run_folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        parts = row["divergence"] + 0.05 * row["hidden_distance"] + 0.1 * row["attention_divergence"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert row["cross_entropy"] > 0
    trained = load_trained(folder)
    assert trained.cfg.linear_norm
    packed = pack_model(trained.cfg, trained.params, trained.rules, trained.state, {}, {})
    result = verify(packed, trained.cfg, trained.params, trained.rules, trained.state, np.arange(12)[None])
    assert result.ok, str(result)


def test_latent_weights_are_onebits_alone(tiny_config):
    with pytest.raises(
        ConfigError, match=r"quant\.latent=0\.01 is set, and quant\.method 'paretoq' has no such choice"
    ):
        prepare(tiny_config("quant.latent=0.01"))
