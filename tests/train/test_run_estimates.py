"""What an estimate takes from a config besides sizes, and what it says that it leaves out."""

import jax
import pytest

from lowbit.errors import ConfigError
from lowbit.train.accelerators import accelerator
from lowbit.train.blueprint import blueprint
from lowbit.train.estimate import estimate, model_sizes
from lowbit.train.sharding import make_mesh

MESH = {"data": 1, "fsdp": 1, "tensor": 1}


def test_norms_behind_products_are_kept(tiny_config):
    assert model_sizes(tiny_config("model.linear_norm=true")).linear_norm
    assert not model_sizes(tiny_config()).linear_norm
    with pytest.raises(ConfigError, match=r"model\.rotate is set, and a run from scratch has no weights to turn"):
        model_sizes(tiny_config("model.rotate=true"))


def test_documents_that_are_kept_apart_are_counted(tiny_config):
    for setting, separate in (("true", False), ("false", True)):
        config = tiny_config(f"data.attend_across_documents={setting}")
        model = blueprint(config, model_sizes(config), make_mesh(MESH, jax.devices()[:1])).model
        assert (model.separator is not None) == separate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("distill.weight=1", "distill.cache=there", "distill.teacher=t"),
            r"distill\.cache: the batch is counted without",
        ),
        (("data.attend_across_documents=false", "model.compute_dtype=bfloat16"), r"the 16-bit bias .* is not counted"),
    ],
)
def test_what_is_not_counted_is_said(tiny_config, tmp_path, settings, message):
    with pytest.warns(UserWarning, match=message):
        estimate(tiny_config(*settings), accelerator("h100"), MESH, results=tmp_path)
