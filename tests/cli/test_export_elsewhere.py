"""`export --to gguf` and `--to hf`: what they print, the way back from a GGUF file, what is refused."""

import re

import numpy as np
import pytest

from lowbit import formats
from lowbit.formats import PackedTensor


def test_gguf_and_back_is_the_same_model(lowbit, packed, tmp_path):
    gguf = tmp_path / "w2.gguf"
    done = lowbit("export", packed, "--to", "gguf", "-o", gguf)
    assert done.status == 0, done.err
    assert re.search(
        r"^layers\.\*\.attn\.q_proj\.kernel +2 +seq2 +Q4_0 +4\.500 +\S+ +[\d,]+ +[\d,]+ +equal$", done.out, re.M
    )
    assert "weights             all equal to the packed ones" in done.out
    assert re.search(r"quantized matrices  4\.\d+ bits/weight, .*: \+[\d,]+ bytes", done.out)
    again = tmp_path / "again.lowbit"
    assert lowbit("export", gguf, "-o", again).status == 0
    before, after = formats.read(packed), formats.read(again, verify=True)
    assert after.meta == before.meta
    for name, tensor in before.tensors.items():
        if isinstance(tensor, PackedTensor):
            np.testing.assert_array_equal(after.tensors[name].packed, tensor.packed)
            np.testing.assert_array_equal(after.tensors[name].scale, tensor.scale)
    # The record of what it was made from came along.
    assert lowbit("verify", again).status == 0


def test_a_float_model_is_rounded_on_the_way_and_thirds_are_reported(lowbit, float_model, tmp_path):
    rounding = ("--method", "paretoq", "--bits", 1.58)
    done = lowbit("export", float_model, *rounding, "--to", "gguf", "--avoid", "Q2_0", "-o", tmp_path / "m.gguf")
    assert done.status == 0, done.err
    assert "Q4_0" in done.out
    assert re.search(
        r"codes equal; in \d+ of 20 tensors fp16 rounds the scales, by \S+e-04 of a weight at most; "
        r"2 of 20 tensors became floats, as no low-bit type holds them, rounded by \S+e-04 of a weight at most",
        done.out,
    )
    refused = lowbit("export", float_model, *rounding, "--to", "gguf", "--avoid", "Q2", "-o", tmp_path / "n.gguf")
    assert refused.status == 2
    assert "there is no type 'Q2' to avoid" in refused.err


def test_hugging_face_folder(lowbit, packed, tmp_path):
    done = lowbit("export", packed, "--to", "hf", "-o", tmp_path / "hf")
    assert done.status == 0, done.err
    assert re.search(r"weights +float32, .*, equal to the packed ones bit for bit", done.out)
    assert (tmp_path / "hf" / "lowbit" / "model.lowbit").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--avoid", "Q1_0"), "--to packed has no choice of --avoid\n  -> leave out --avoid, or add --to gguf"),
        (("--to", "hf", "--pre", "gpt-2"), "--to hf has no choice of --pre"),
        (("--to", "gguf"), r"m\.out does not end with \.gguf, by which such files are known"),
        (("--to", "onnx"), "invalid choice: 'onnx'"),
    ],
)
def test_flags_that_do_not_go_together(lowbit, tmp_path, flags, message):
    done = lowbit("export", "never/looked/at", *flags, "-o", tmp_path / "m.out")
    assert done.status == 2
    assert re.search(message, done.err)


def test_outputs_and_sources_are_refused_before_any_work(lowbit, packed, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine").write_text("x")
    cases = (
        (("never/looked/at", "--to", "hf", "-o", folder), "is not an empty folder"),
        (("never/looked/at", "--to", "hf", "-o", tmp_path / "absent" / "hf"), "there is no folder"),
        ((packed, "--to", "gguf", "--method", "rtn", "--bits", 2, "-o", tmp_path / "m.gguf"), "is quantized already"),
        ((tmp_path / "absent.gguf", "-o", tmp_path / "m.lowbit"), "there is no file"),
    )
    for arguments, message in cases:
        done = lowbit("export", *arguments)
        assert done.status == 2
        assert message in done.err


def test_a_damaged_packed_file_is_not_exported(lowbit, packed, tmp_path):
    damaged = tmp_path / "damaged.lowbit"
    raw = bytearray(packed.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    done = lowbit("export", damaged, "--to", "gguf", "-o", tmp_path / "m.gguf")
    assert done.status == 2
    assert "its bytes do not match their checksum" in done.err
    assert not (tmp_path / "m.gguf").exists()
