"""Models of which one layer is in memory are those that are loaded whole, whatever kind of file they lie in."""

import numpy as np
import pytest

from lowbit.errors import ModelError
from lowbit.export import pack_model
from lowbit.export.gguf import to_gguf
from lowbit.formats import write
from lowbit.gguf import write as write_gguf
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.models.layerwise import LayerSource, ModelInMemory, open_model, outside_paths
from lowbit.models.pretrained import load
from lowbit.numerics.quantizers import stored_as
from lowbit.tree import Rule, flatten, unflatten

CFG = LlamaConfig(64, 32, 64, 3, num_heads=4, num_kv_heads=2, head_dim=8, tie_embeddings=False, max_positions=32)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = param_shapes(CFG).items()
    return unflatten({path: rng.standard_normal(shape).astype(np.float16).astype(np.float32) for path, shape in shapes})


@pytest.fixture(scope="module")
def places(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_hf(folder / "hf", CFG, params, {}, "float16", max_shard_bytes=40_000)
    packed = pack_model(CFG, params, [Rule(".*", stored_as(np.float16))], {"quant": {}, "grid": {}}, {}, {})
    write(folder / "packed.lowbit", packed)
    found = to_gguf(packed, "tiny")
    with (folder / "model.gguf").open("wb") as file:
        write_gguf(file, found.metadata, found.tensors)
    return {"hf": folder / "hf", "packed": folder / "packed.lowbit", "gguf": folder / "model.gguf"}


@pytest.mark.parametrize("kind", ["hf", "packed", "gguf"])
def test_layer_by_layer_is_the_whole(kind, places, params):
    source = open_model(places[kind])
    whole = load(places[kind])
    assert isinstance(source, LayerSource)
    assert source.cfg == whole.cfg
    assert source.tokenizer_files == whole.tokenizer_files
    for sides in (source, ModelInMemory(whole)):
        for path in outside_paths(CFG):
            np.testing.assert_array_equal(sides.outside(path), flatten(params)[path])
        for index in (2, 0, 1):
            layer = sides.layer(index)
            assert {LAYER_PREFIX + path for path in layer} | set(outside_paths(CFG)) == set(param_shapes(CFG))
            for path, leaf in layer.items():
                assert leaf.dtype == np.float32
                np.testing.assert_array_equal(leaf, flatten(params)[LAYER_PREFIX + path][index])
    assert source.load().cfg == CFG


def test_a_layer_outlives_the_file(places):
    source = open_model(places["hf"])
    layer = source.layer(1)
    assert all(leaf.base is None or leaf.base.base is None for leaf in layer.values())
    assert not source._source._open  # no file is mapped any longer


def test_a_tensor_that_is_not_finite_is_found_when_it_is_read(params, tmp_path):
    broken = {**flatten(params)}
    path = "layers/mlp/up_proj/kernel"
    broken[path] = broken[path].copy()
    save_hf(tmp_path / "good", CFG, unflatten(broken), {}, "float32")
    broken[path][2, 0, 0] = np.inf
    with pytest.raises(ModelError, match=r"layers.2.mlp.up_proj.weight holds values that float32 cannot"):
        save_hf(tmp_path / "bad", CFG, unflatten(broken), {}, "float32")
    file = tmp_path / "good" / "model.safetensors"
    content = bytearray(file.read_bytes())
    value = np.float32(broken[path][2, 0, 1]).tobytes()
    at = content.rindex(value)
    content[at : at + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(content)
    source = open_model(tmp_path / "good")
    source.layer(0)
    with pytest.raises(ModelError, match=r"holds NaN or infinite values"):
        [source.layer(index) for index in range(3)]
