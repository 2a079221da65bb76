"""GGUF files, written here by the gguf library as llama.cpp's converter lays them out."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer

from lowbit.errors import ModelError, TokenizerError
from lowbit.llama import LlamaConfig, RopeScaling, param_shapes, rope_frequencies
from lowbit.models import load
from lowbit.models.gguf import gguf_name, half_split_rows
from lowbit.models.stacking import layer_names
from lowbit.tree import flatten

# "Ġ" is how byte-level BPE writes a space.
TOKENS = ["<|start|>", "<|end|>", *"abcde", "Ġ", "1", "2", "ab", "Ġc", "<tool>"]
KINDS = [3, 3, *[1] * (len(TOKENS) - 3), 4]
MERGES = ["a b", "Ġ c"]
CFG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    max_positions=128,
    bos_token_id=0,
    eos_token_ids=(1,),
)


def interleaved_rows(weight, heads):
    """llama.cpp's order of the rows of q and k: pair (i, i + h/2) of each head side by side."""
    rows, k = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, k).swapaxes(1, 2).reshape(rows, k)


def write_gguf(path, architecture="llama", cfg=CFG, kind=GGMLQuantizationType.F32, extra=(), **metadata):
    """Writes random weights; returns the parameters that a loader must find, by path."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_block_count(cfg.num_layers)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.num_kv_heads)
    writer.add_context_length(cfg.max_positions)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in metadata.items():
        getattr(writer, name)(value)
    params = {}
    for path, shape in param_shapes(cfg).items():
        layers = []
        for name in layer_names(cfg, path, gguf_name):
            own = rng.normal(size=shape[1:] if path.startswith("layers/") else shape).astype(np.float32)
            stored = own.T if path.endswith("kernel") else own
            heads = {"attn_q.weight": cfg.num_heads, "attn_k.weight": cfg.num_kv_heads}.get(name.split(".", 2)[-1])
            if heads and architecture == "llama":
                stored = interleaved_rows(stored, heads)
            if stored.ndim == 2 and kind != GGMLQuantizationType.F32:
                packed = quantize(stored, kind)
                writer.add_tensor(name, packed, raw_dtype=kind)
                stored = dequantize(packed, kind)
                if heads and architecture == "llama":
                    stored = half_split_rows(stored, heads)
                own = stored.T if path.endswith("kernel") else stored
            else:
                writer.add_tensor(name, np.ascontiguousarray(stored))
            layers.append(own)
        params[path] = np.stack(layers) if path.startswith("layers/") else layers[0]
    for name, tensor in extra:
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return params


def with_(**changes):
    return LlamaConfig(**{**CFG.__dict__, **changes})


def assert_equal(tree, params):
    flat = flatten(tree)
    assert flat.keys() == params.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(flat[path], leaf, err_msg=path)


def test_half_split_rows_undoes_the_interleaving_of_rotary_pairs():
    rows = np.arange(16.0)[:, None].repeat(3, 1)
    interleaved = interleaved_rows(rows, 2)
    assert interleaved[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]  # the first head of eight
    np.testing.assert_array_equal(half_split_rows(interleaved, 2), rows)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q4_1, GGMLQuantizationType.BF16])
def test_llama_with_tied_head(kind, tmp_path):
    params = write_gguf(tmp_path / "m.gguf", kind=kind)
    cfg, tree, tokenizer_files = load(tmp_path / "m.gguf")
    assert cfg == CFG
    assert_equal(tree, params)
    assert set(tokenizer_files) == {"tokenizer.json", "tokenizer_config.json"}


def test_qwen2_with_bias_own_head_and_rows_as_they_are(tmp_path):
    cfg = with_(qkv_bias=True, tie_embeddings=False)
    params = write_gguf(tmp_path / "m.gguf", "qwen2", cfg)
    loaded = load(tmp_path / "m.gguf")
    assert loaded.cfg == cfg
    assert_equal(loaded.params, params)


def test_llama3_rope_comes_out_of_its_divisors(tmp_path):
    scaling = RopeScaling("llama3", 32.0, 8192, 1.0, 4.0)
    scaled = with_(rope_scaling=scaling)
    divisors = rope_frequencies(CFG)[0] / rope_frequencies(scaled)[0]
    write_gguf(tmp_path / "m.gguf", extra=[("rope_freqs.weight", divisors)])
    assert load(tmp_path / "m.gguf").cfg == scaled
    write_gguf(tmp_path / "other.gguf", extra=[("rope_freqs.weight", divisors * np.float32(1.1))])
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not the rope scaling of Llama 3"):
        load(tmp_path / "other.gguf")


def test_what_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "gemma")
    with pytest.raises(ModelError, match=r"GGUF architecture 'gemma' .* is not supported\n.*llama, qwen2"):
        load(path)
    write_gguf(path, extra=[("blk.0.ffn_gate_inp.weight", np.zeros((2, 32), np.float32))])
    with pytest.raises(ModelError, match=r"holds blk\.0\.ffn_gate_inp\.weight, which a decoder"):
        load(path)
    write_gguf(path, add_head_count=[4, 4])
    with pytest.raises(ModelError, match="gives num_attention_heads for each layer"):
        load(path)
    write_gguf(path, add_rope_dimension_count=4)
    with pytest.raises(ModelError, match="rotates 4 of 8 dimensions"):
        load(path)
    path.write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(ModelError, match="is not a whole GGUF file"):
        load(path)
    path.write_bytes(b"no such magic at all, only a text")
    with pytest.raises(ModelError, match="is not a whole GGUF file"):
        load(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="is not a whole GGUF file"):
        load(path)


def test_a_tokenizer_file_beside_the_model_comes_first(tmp_path):
    write_gguf(tmp_path / "m.gguf", add_tokenizer_pre="unheard-of")
    with pytest.raises(TokenizerError, match=r"by the rule 'unheard-of'.*\n.*put the model's tokenizer\.json beside"):
        load(tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert load(tmp_path / "m.gguf").tokenizer_files == {"tokenizer.json": b"{}"}


def test_a_sentencepiece_tokenizer_comes_out_of_the_file(tmp_path):
    scores = [-float(i) for i in range(len(TOKENS))]
    write_gguf(tmp_path / "m.gguf", add_tokenizer_model="llama", add_token_scores=scores, add_add_space_prefix=False)
    content = load(tmp_path / "m.gguf").tokenizer_files["tokenizer.json"]
    assert Tokenizer.from_str(content.decode()).encode("abc").tokens == ["<|start|>", "ab", "c"]


def test_rows_that_no_heads_divide_and_divisors_of_another_count_are_refused_for_their_shape(tmp_path):
    odd = with_(num_heads=1, num_kv_heads=1)
    write_gguf(tmp_path / "m.gguf", cfg=odd, add_head_count=3, add_head_count_kv=3, add_key_length=8)
    with pytest.raises(
        ModelError, match=r"blk\.0\.attn_q\.weight in .* has shape \[8, 32\], but the config states \[24"
    ):
        load(tmp_path / "m.gguf")
    write_gguf(tmp_path / "d.gguf", extra=[("rope_freqs.weight", np.ones(3, np.float32))])
    with pytest.raises(ModelError, match=r"rope_freqs\.weight has shape \[3\], but the config states \[4\]"):
        load(tmp_path / "d.gguf")


def test_metadata_of_another_kind_is_refused_with_the_file(tmp_path):
    write_gguf(tmp_path / "m.gguf", add_rope_freq_base=-1.0)
    with pytest.raises(ModelError, match=r"rope_theta in .*m\.gguf is -1\.0, not a number above 0"):
        load(tmp_path / "m.gguf")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    params = write_gguf(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    value = params["norm/scale"][:2].tobytes()
    assert content.count(value) == 1
    (tmp_path / "m.gguf").write_bytes(content.replace(value, np.full(2, np.nan, np.float32).tobytes()))
    with pytest.raises(ModelError, match=r"output_norm\.weight in .*m\.gguf holds NaN or infinite values"):
        load(tmp_path / "m.gguf")
