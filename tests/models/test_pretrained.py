"""What is refused when a model is loaded or saved, with the cause and the mend."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from lowbit.errors import FormatError, ModelError, TokenizerError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import load, save_hf
from lowbit.tree import unflatten

CFG = LlamaConfig(20, 8, 12, 2, 2, 1, 4, tie_embeddings=False, qkv_bias=True, bos_token_id=0, eos_token_ids=(1, 2))
RNG = np.random.default_rng(0)
PARAMS = unflatten({path: RNG.normal(size=shape).astype(np.float32) for path, shape in param_shapes(CFG).items()})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder with a single file, and one with shards."""
    root = tmp_path_factory.mktemp("models")
    save_hf(root / "single", CFG, PARAMS, {"tokenizer.json": b"{}"}, dtype="float32")
    save_hf(root / "sharded", CFG, PARAMS, {}, dtype="float32", max_shard_bytes=2000)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved / "single", tmp_path / "model")


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match=r"there is no model at .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"there is no file .*nowhere\.gguf"):
        load(tmp_path / "nowhere.gguf")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FormatError, match=r"model\.bin: 0 bytes are too few for a packed file"):
        load(tmp_path / "model.bin")
    with pytest.raises(ModelError, match=r"has no config\.json\n.*name the folder"):
        load(tmp_path)


def test_a_hub_name_is_downloaded(saved, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns):
        asked.append(name)
        return str(saved / "single")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("someone/model").cfg == CFG
    assert asked == ["someone/model"]


def test_an_unreachable_hub(monkeypatch):
    def offline(name, allow_patterns):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"'someone/model'.*cannot be reached.*\n.*give its folder"):
        load("someone/model")


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        load(folder)


def test_a_config_that_is_a_list_or_a_folder(folder):
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json does not hold a JSON object"):
        load(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load(folder)


def test_a_config_value_of_another_kind_is_refused_with_its_file(folder):
    edit_config(folder, hidden_size="abc")
    with pytest.raises(ModelError, match=r"hidden_size in .*model/config\.json is 'abc', not a whole number"):
        load(folder)


@pytest.mark.parametrize(("content", "message"), [("[]", "does not hold a JSON object"), ("{", "is not JSON")])
def test_a_tokenizer_config_that_is_no_object(folder, content, message):
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json {message}"):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(folder, value):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda t: t[name].__setitem__((0, 0), value))
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.up_proj\.weight in .* holds NaN or infinite values\n.*finite"
    ):
        load(folder)


def test_an_index_that_names_the_wrong_shard(saved, tmp_path):
    folder = shutil.copytree(saved / "sharded", tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = content["weight_map"]
    name, wrong = "model.norm.weight", shards["model.embed_tokens.weight"]
    assert shards[name] != wrong
    index.write_text(json.dumps({**content, "weight_map": {**shards, name: wrong}}))
    with pytest.raises(ModelError, match=rf"says that model\.norm\.weight is in .*{wrong}, which does not hold it"):
        load(folder)
    for malformed in ([*shards], {name: 1}, None):
        index.write_text(json.dumps({**content, "weight_map": malformed}))
        with pytest.raises(ModelError, match=r"weight_map in .* does not give the file of each tensor"):
            load(folder)


def test_a_missing_and_an_unexpected_tensor(folder):
    edit_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight\n.*download the model again"):
        load(folder)


def test_an_unexpected_tensor(folder):
    edit_tensors(folder, lambda t: t.update({"model.layers.0.mlp.router.weight": np.zeros(3, np.float32)}))
    with pytest.raises(ModelError, match=r"holds model\.layers\.0\.mlp\.router\.weight, which a decoder"):
        load(folder)


def test_rotary_tables_of_old_files_are_passed_over(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda t: t.update({name: np.zeros(2, np.float32)}))
    assert load(folder).cfg == CFG


def test_another_shape(folder):
    edit_config(folder, intermediate_size=16)
    with pytest.raises(
        ModelError, match=r"gate_proj\.weight in .* has shape \[12, 8\], but the config states \[16, 8\]"
    ):
        load(folder)


def test_tensors_that_are_no_floats(folder):
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": np.zeros(8, np.int8)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight in .* is stored as I8"):
        load(folder)


def test_a_head_that_should_be_tied_and_one_that_should_not(folder):
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"tied, but lm_head\.weight .* differs\n.*tie_word_embeddings to false"):
        load(folder)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert "lm_head" not in load(folder).params
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    assert "lm_head" not in load(folder).params
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"has no lm_head\.weight\n.*tie_word_embeddings to true"):
        load(folder)


def test_a_missing_shard(saved, tmp_path):
    folder = shutil.copytree(saved / "sharded", tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks the shards {shard.name}\n.*finish the download"):
        load(folder)


def test_a_truncated_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(folder)


def test_pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights\n.*save_pretrained"):
        load(folder)


def test_saving_refuses_before_it_writes(saved, tmp_path):
    with pytest.raises(ModelError, match="single exists and is not an empty folder"):
        save_hf(saved / "single", CFG, PARAMS, {})
    with pytest.raises(ModelError, match="cannot save as 'float8': did you mean 'float"):
        save_hf(tmp_path / "new", CFG, PARAMS, {}, dtype="float8")
    with pytest.raises(ModelError, match="not those of the config: see norm/scale"):
        save_hf(tmp_path / "new", CFG, {**PARAMS, "norm": {"scale": np.ones(9, np.float32)}}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(tmp_path):
    params = {**PARAMS, "norm": {"scale": np.full(8, 1e6, np.float32)}}
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds values that float16 cannot represent"):
        save_hf(tmp_path / "new", CFG, params, {}, dtype="float16")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"file/new cannot be written: .*\n  -> free some space, or write to a folder"):
        save_hf(tmp_path / "file" / "new", CFG, PARAMS, {})
    (tmp_path / "new").mkdir()  # an empty folder may be filled
    save_hf(tmp_path / "new", CFG, params, {}, dtype="bfloat16")
    assert load(tmp_path / "new").cfg == CFG
