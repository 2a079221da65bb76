"""Packed models to GGUF and back: which type a tensor takes, that weights stay, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lowbit.errors import FormatError, ModelError, TokenizerError
from lowbit.export.gguf import to_gguf, write_gguf
from lowbit.export.gguf_blocks import HALF_ULP, to_blocks
from lowbit.export.gguf_layout import slots
from lowbit.export.gguf_record import CONFIG_KEY, KEY, from_gguf, is_recorded
from lowbit.formats import BFloat16, CodedScale, PackedModel, PackedTensor, decode, summarize
from lowbit.gguf import GgufTensor, read
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig, RopeScaling, rope_frequencies
from lowbit.models import load
from lowbit.models.gguf import ROPE_DIVISORS, dequantized

THIRD = float(np.float32(2 / 3))
GRIDS = {
    "binary": (-1.0, 1.0),
    "ternary": (-1.0, 0.0, 1.0),
    "seq_ternary": (-THIRD, 0.0, THIRD),
    "seq2": (-0.75, -0.25, 0.25, 0.75),
    "int2": (-2.0, -1.0, 0.0, 1.0),
    "int3": tuple(map(float, range(-4, 4))),
    "int4": tuple(map(float, range(-8, 8))),
    "int8": tuple(map(float, range(-128, 128))),
    "uint4": tuple(map(float, range(16))),
    "odd": (-1.0, 0.3, 2.0, 5.0),
}
WIDE = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "eos_token_id": [1, 2],
    }
)


def packed_tensor(grid, k, n, groups=1, zero=None, scale=None, transposed=False, seed=0):
    rng = np.random.default_rng(seed)
    levels = np.array([float(np.float32(level)) for level in GRIDS[grid]], np.float32)
    codes = rng.integers(0, len(levels), (k, n)).astype(np.uint8)
    if scale is None:
        scale = rng.uniform(0.01, 0.1, (groups, n)).astype(np.float16)
    return PackedTensor.from_codes(codes, scale, levels, grid, zero=zero, transposed=transposed)


def packed_model(grid, cfg=WIDE, groups=1, tokenizer=None):
    tensors = {}
    for seed, (name, shape) in enumerate(unstacked_shapes(cfg).items()):
        if name.endswith("_proj.kernel"):
            tensors[name] = packed_tensor(grid, *shape, groups=groups, seed=seed)
        else:
            tensors[name] = np.random.default_rng(seed).normal(size=shape).astype(np.float16)
    return PackedModel(tensors, cfg.to_hf(), tokenizer or {}, {"notes": [1, 2.5]})


@pytest.mark.parametrize(
    ("grid", "k", "groups", "kind"),
    [
        ("binary", 512, 1, "Q1_0"),
        ("binary", 576, 1, "Q2_0"),  # a row is no multiple of 128
        ("binary", 512, 4, "Q1_0"),
        ("binary", 512, 8, "Q2_0"),
        ("binary", 512, 16, "Q4_0"),
        ("ternary", 512, 1, "TQ1_0"),
        ("ternary", 512, 2, "TQ1_0"),
        ("ternary", 576, 1, "Q2_0"),
        ("seq2", 512, 1, "Q2_K"),
        ("seq2", 512, 8, "Q4_0"),
        ("seq2", 576, 1, "Q4_0"),
        ("int2", 512, 1, "Q2_0"),
        ("int3", 512, 1, "Q3_K"),
        ("int3", 576, 1, "Q4_0"),
        ("int4", 512, 16, "Q4_0"),
        ("int4", 576, 1, "Q4_0"),
        ("int8", 576, 18, "Q8_0"),
    ],
)
def test_the_smallest_exact_type_holds_the_weights_bit_for_bit(grid, k, groups, kind):
    tensor = packed_tensor(grid, k, 6, groups)
    blocks = to_blocks(tensor, along_rows=False)
    assert (blocks.kind.name, blocks.error, blocks.shape) == (kind, 0, (6, k))
    weights = dequantized(GgufTensor(blocks.kind, blocks.shape, blocks.data), "t")
    np.testing.assert_array_equal(weights.T, tensor.decode())


def test_thirds_round_their_scale_and_nothing_else():
    tensor = packed_tensor("seq_ternary", 256, 64)
    blocks = to_blocks(tensor, along_rows=False)
    assert blocks.kind.name == "TQ1_0"
    weights = dequantized(GgufTensor(blocks.kind, blocks.shape, blocks.data), "t").T
    exact = tensor.decode()
    np.testing.assert_array_equal(np.sign(weights), np.sign(exact))
    assert 0 < np.abs(weights - exact)[exact != 0].max() / np.abs(exact).max() <= blocks.error <= HALF_ULP


def test_thirds_of_numbers_that_three_divides_are_exact():
    """fp16 mantissas that are multiples of 3 have an fp16 number at two thirds."""
    scale = (np.arange(1026, 2048, 3)[None] / 2**14).astype(np.float16)
    assert to_blocks(packed_tensor("seq_ternary", 256, scale.size, scale=scale), along_rows=False).error == 0


def test_types_to_avoid_are_not_taken():
    ternary = packed_tensor("ternary", 512, 2)
    names = ("TQ1_0", "TQ2_0", "Q2_0", "Q3_K", "Q4_0", "Q8_0", "F16")
    for count, name in enumerate(names):
        assert to_blocks(ternary, False, names[:count]).kind.name == name
    with pytest.raises(ModelError, match="there is no type 'TQ3_0' to avoid\n  -> choose from Q1_0, TQ1_0"):
        to_gguf(packed_model("ternary"), "m", avoid=["TQ3_0"])


def test_what_no_low_bit_type_holds_becomes_float_and_says_so():
    odd_row = to_blocks(packed_tensor("int4", 48, 3), along_rows=False)
    assert (odd_row.kind.name, odd_row.unit) == ("F16", None)
    assert 0 < odd_row.error <= HALF_ULP  # 4 bits of code and 11 of scale are more than fp16 has
    odd_grid = to_blocks(packed_tensor("odd", 256, 3), along_rows=False)
    assert odd_grid.kind.name == "F16"
    # Below 2^-14 fp16 loses digits, and half a unit in the last place is more than 2^-11.
    faint = packed_tensor("int4", 64, 3, scale=np.full((1, 3), 7e-6, np.float32))
    assert (to_blocks(faint, False).kind.name, to_blocks(faint, False).error) == ("F32", 0)


def test_zero_points_are_integers_of_a_wider_type():
    zero = np.array([[0.0, 8.0, 15.0]], np.float16)
    tensor = packed_tensor("uint4", 64, 3, zero=zero)
    blocks = to_blocks(tensor, along_rows=False)
    assert (blocks.kind.name, blocks.error) == ("Q8_0", 0)
    weights = dequantized(GgufTensor(blocks.kind, blocks.shape, blocks.data), "t").T
    np.testing.assert_array_equal(weights, tensor.decode())
    middle = packed_tensor("uint4", 64, 3, zero=np.full((1, 3), 8, np.float16))
    assert to_blocks(middle, along_rows=False).kind.name == "Q4_0"


def test_floats_keep_their_values():
    exact = np.array([[1.0, -2.5]], np.float32)
    assert to_blocks(exact, True).kind.name == "F16"
    assert to_blocks(np.array([[1e-9, 1.0]], np.float32), True).kind.name == "F32"
    assert to_blocks(BFloat16.from_float32(np.array([[1e-9, 1.0]], np.float32)), True).kind.name == "BF16"
    assert to_blocks(np.ones(3, np.float16), False).kind.name == "F32"  # a norm


def equal(a, b):
    assert a.config == b.config
    assert a.meta == b.meta
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        assert type(other) is type(tensor), name
        if not isinstance(tensor, PackedTensor):
            assert other.dtype == tensor.dtype
            np.testing.assert_array_equal(other, tensor, err_msg=name)
            continue
        np.testing.assert_array_equal(other.packed, tensor.packed, err_msg=name)
        np.testing.assert_array_equal(other.levels, tensor.levels)
        assert (other.shape, other.grid, other.packing) == (tensor.shape, tensor.grid, tensor.packing)
        for ours, theirs in ((tensor.scale, other.scale), (tensor.zero, other.zero)):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(theirs, ours, err_msg=name)


@pytest.mark.parametrize(
    ("grid", "groups"),
    [("binary", 2), ("ternary", 1), ("seq_ternary", 1), ("seq2", 1), ("int2", 4), ("int3", 1), ("int4", 8)],
)
def test_codes_and_scales_come_back(grid, groups, tmp_path):
    packed = packed_model(grid, groups=groups)
    write_gguf(tmp_path / "m.gguf", to_gguf(packed, "m"))
    assert is_recorded(tmp_path / "m.gguf")
    equal(packed, from_gguf(tmp_path / "m.gguf"))


def test_every_kind_of_scale_comes_back(tmp_path):
    packed = packed_model("int3")
    names = [name for name in packed.tensors if name.endswith("_proj.kernel")]
    shared = np.array([[0.5]], np.float16)
    wide = np.random.default_rng(0).uniform(0.1, 1, (1, 256)).astype(np.float32)
    zero = np.array([[3.0] * 256], np.float16)
    packed.tensors[names[0]] = packed_tensor("int3", 256, 256, scale=shared)
    packed.tensors["layers.0.attn.o_proj.kernel"] = packed_tensor("int4", 256, 256, scale=wide)
    packed.tensors["layers.1.attn.o_proj.kernel"] = packed_tensor("uint4", 256, 256, zero=zero)
    packed.tensors["embed.embedding"] = packed_tensor("int8", 256, 40, transposed=True)
    write_gguf(tmp_path / "m.gguf", to_gguf(packed, "m"))
    equal(packed, from_gguf(tmp_path / "m.gguf"))


def test_llama_cpp_finds_rows_and_names_as_it_wants_them():
    """Rows of q and k are interleaved rotary pairs; whole rows move, so codes and scales stay together."""
    packed = packed_model("int4")
    gguf = to_gguf(packed, "m")
    q = decode(packed.tensors["layers.1.attn.q_proj.kernel"]).T
    got = dequantized(gguf.tensors["blk.1.attn_q.weight"], "q")
    np.testing.assert_array_equal(got[0], q[0])
    np.testing.assert_array_equal(got[1], q[WIDE.head_dim // 2])
    np.testing.assert_array_equal(got[2], q[1])
    assert gguf.tensors["blk.0.attn_norm.weight"].kind.name == "F32"
    assert "output.weight" not in gguf.tensors  # the head is the embedding
    assert {slot.gguf for slot in slots(WIDE)} == gguf.tensors.keys()


def test_metadata_is_what_the_importer_reads(tmp_path):
    scaling = RopeScaling("yarn", 4.0, 16, beta_fast=16.0, attention_factor=1.25)
    for change in (
        {"eos_token_ids": ()},
        {"qkv_bias": True, "eos_token_ids": ()},
        {"tie_embeddings": False, "eos_token_ids": ()},
        {"rope_scaling": RopeScaling("linear", 2.0), "eos_token_ids": ()},
        {"rope_scaling": scaling, "eos_token_ids": ()},
    ):
        cfg = dataclasses.replace(WIDE, bos_token_id=None, **change)
        model = to_gguf(packed_model("int4", cfg), "m")
        write_gguf(tmp_path / "m.gguf", model._replace(metadata=without_record(model.metadata)))
        got = load(tmp_path / "m.gguf").cfg
        np.testing.assert_allclose(rope_frequencies(got)[0], rope_frequencies(cfg)[0], rtol=1e-6)
        np.testing.assert_allclose(rope_frequencies(got)[1], rope_frequencies(cfg)[1], rtol=1e-6)
        same = dict.fromkeys(("rope_scaling", "max_positions"))
        assert dataclasses.replace(got, **same | {"max_positions": 64}) == dataclasses.replace(
            cfg, **same | {"max_positions": 64}
        )


def without_record(metadata):
    return {key: value for key, value in metadata.items() if not key.startswith("lowbit.")}


def test_the_rope_of_llama3_is_a_tensor_of_divisors(tmp_path):
    cfg = dataclasses.replace(WIDE, rope_scaling=RopeScaling("llama3", 8.0, 16, 1.0, 4.0))
    model = to_gguf(packed_model("int4", cfg), "m")
    plain = rope_frequencies(WIDE)[0]
    divisors = model.tensors[ROPE_DIVISORS].data.view(np.float32)
    np.testing.assert_allclose(plain / divisors, rope_frequencies(cfg)[0], rtol=1e-6)
    write_gguf(tmp_path / "m.gguf", model)
    assert load(tmp_path / "m.gguf").cfg == cfg  # from the record: its own keys know the standard constants alone


def test_what_llama_cpp_cannot_compute_is_refused():
    cfg = dataclasses.replace(WIDE, rope_scaling=RopeScaling("yarn", 4.0, 16, truncate=False))
    with pytest.raises(ModelError, match=r"rounds the ends of yarn's ramp .* \(truncate = false\)\n  -> run it with"):
        to_gguf(packed_model("int4", cfg), "m")
    packed = packed_model("int4")
    del packed.tensors["norm.scale"]
    with pytest.raises(ModelError, match=r"the tensors are not those of the config: see norm\.scale"):
        to_gguf(packed, "m")


def with_coded_scales(groups=4):
    """A model whose kernels' scales are codes, and those codes by name."""
    packed, coded = packed_model("int4", groups=groups), {}
    for name, tensor in packed.tensors.items():
        if isinstance(tensor, PackedTensor):
            codes = np.random.default_rng(len(coded)).integers(1, 256, (tensor.shape[1], groups)).astype(np.uint8)
            steps = np.full(-(-codes.size // 256), 2.0**-12, np.float32)
            coded[name] = CodedScale(codes, steps, np.array([0.0431], np.float32))
    for name, scale in coded.items():
        packed.tensors[name] = dataclasses.replace(packed.tensors[name], scale=scale.decode(), coded_scale=scale)
    return packed, coded


def test_scales_that_are_codes_come_back_as_codes_and_their_weights_are_exact(tmp_path):
    packed, coded = with_coded_scales()
    model = to_gguf(packed, "m")
    assert {(row.kind, row.error) for row in model.rows if row.grid} == {("Q4_0", 0.0)}
    write_gguf(tmp_path / "m.gguf", model)
    again = from_gguf(tmp_path / "m.gguf")
    equal(packed, again)
    for name, scale in coded.items():
        for part in ("codes", "steps", "mean"):
            np.testing.assert_array_equal(getattr(again.tensors[name].coded_scale, part), getattr(scale, part))
    assert summarize(again).tensor_bytes == summarize(packed).tensor_bytes


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("scale_codes", np.full(256 * 4, 300, np.int32), ModelError, "OverflowError"),
        ("scale_codes", np.zeros(256 * 4 - 1, np.uint8), ModelError, "does not fit the tensors"),
        ("scale_codes", np.zeros(256 * 5, np.uint8), FormatError, r"codes of scales are uint8\[256, 5\]"),
        ("scale_steps", np.ones(3, np.float32), FormatError, r"scale_steps is float32\[3\], and not float32\[4\]"),
        ("scale_steps", np.full(4, np.nan, np.float32), FormatError, "a step or the mean of scales is NaN"),
    ],
)
def test_codes_of_scales_that_do_not_fit_are_refused(key, value, error, message, tmp_path):
    packed, _ = with_coded_scales()
    model = to_gguf(packed, "m")
    forged = {**model.metadata, f"lowbit.{key}.layers.0.attn.q_proj.kernel": value}
    write_gguf(tmp_path / "m.gguf", model._replace(metadata=forged))
    with pytest.raises(error, match=message):
        from_gguf(tmp_path / "m.gguf")


def test_a_file_of_another_program_has_no_codes(tmp_path):
    model = to_gguf(packed_model("int4"), "m")
    write_gguf(tmp_path / "m.gguf", model._replace(metadata=without_record(model.metadata)))
    assert not is_recorded(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"was not written by lowbit's export.*\n  -> load it as a float model"):
        from_gguf(tmp_path / "m.gguf")


def test_a_record_that_does_not_fit_is_refused(tmp_path):
    model = to_gguf(packed_model("int4"), "m")
    record = json.loads(model.metadata[KEY])
    first = next(iter(record["tensors"]))
    edits = {
        "not JSON": "{",
        "KeyError": json.dumps({**record, "tensors": {}}),
        "no levels of the grid": json.dumps({**record, "grids": {"int4": [0.5 + i for i in range(16)]}}),
        "reshape": json.dumps(
            {**record, "tensors": {**record["tensors"], first: {**record["tensors"][first], "scale_shape": [7, 256]}}}
        ),
        "'O'": json.dumps(
            {**record, "tensors": {**record["tensors"], first: {**record["tensors"][first], "scale_dtype": "O"}}}
        ),
    }
    for message, text in edits.items():
        write_gguf(tmp_path / "m.gguf", model._replace(metadata={**model.metadata, KEY: text}))
        with pytest.raises(ModelError, match=rf"lowbit\.packed of .*m\.gguf does not fit .*({message}|JSON)"):
            from_gguf(tmp_path / "m.gguf")
    write_gguf(tmp_path / "m.gguf", model._replace(metadata={**model.metadata, CONFIG_KEY: "[]"}))
    with pytest.raises(ModelError, match=r"lowbit\.config of .*m\.gguf does not hold|lowbit\.config of"):
        load(tmp_path / "m.gguf")


def test_the_whole_tokenizer_is_there(tmp_path):
    folder = Path(__file__).parents[2] / "assets" / "quickstart" / "model"
    files = {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    with pytest.raises(TokenizerError, match="the tokenizer has a token 4095, the model 40 rows"):
        to_gguf(packed_model("int4", tokenizer=files), "m")
    cfg = dataclasses.replace(WIDE, vocab_size=4100, eos_token_ids=(0,), bos_token_id=0)
    write_gguf(tmp_path / "m.gguf", to_gguf(packed_model("int4", cfg, tokenizer=files), "m"))
    metadata = read(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert metadata["tokenizer.ggml.tokens"][4096:] == [f"[PAD{number}]" for number in range(4096, 4100)]
    assert metadata["tokenizer.ggml.token_type"][4096:] == [5] * 4
    assert metadata["tokenizer.ggml.token_type"][0] == 3
    assert metadata["tokenizer.ggml.eos_token_id"] == 0
    assert metadata["tokenizer.ggml.add_bos_token"] is False
