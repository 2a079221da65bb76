"""A model with rounded activations through every command: none forgets how it was made."""

import json
import re

import pytest

from lowbit import formats
from lowbit.llama import LINEARS, CacheKind, InputRounding, LlamaConfig
from lowbit.llama.activations import from_meta

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

NUMBERS = ("--windows", 4, "--length", 32)


def train(lowbit, arguments, folder, *settings):
    done = lowbit(*arguments(folder), *(f"--config.{setting}" for setting in settings))
    assert done.status == 0, done.err
    return folder


def nll(lowbit, source, text, output, *flags):
    done = lowbit("eval", source, "--data", text, *NUMBERS, *flags, "-o", output)
    assert done.status == 0, done.err
    return json.loads(output.read_text())["texts"][str(text)]["nll"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("activations")


@pytest.fixture
def folder(lowbit, train_arguments, place):
    """A run of 4-4-4 and its packed file, made by whichever test of a worker comes first."""
    file = place / "w4a4kv4.lowbit"
    if not file.exists():
        settings = ("quant.method=llmqat", "quant.bits=4", "activations.bits=4", "activations.kv_bits=4")
        run = train(lowbit, train_arguments, place / "w4a4kv4", *settings, "quant.granularity=16")
        done = lowbit("export", run, "-o", file)
        assert done.status == 0, done.err
    return place


def test_a_run_of_4_8_4_is_told_apart_from_one_of_its_weights(lowbit, text, folder, tmp_path):
    run, file = folder / "w4a4kv4", folder / "w4a4kv4.lowbit"
    packed = formats.read(file)
    rounding, _ = from_meta(packed.meta, LlamaConfig.from_hf(packed.config))
    assert rounding.cache == CacheKind(4)
    assert rounding.inputs == tuple((path, InputRounding(4)) for path in LINEARS)

    trained = json.loads((run / "result.json").read_text())["evaluations"]["sea"]["nll"]
    of_run = nll(lowbit, run, text, tmp_path / "run.json", "--windows", 8)
    # A step away from a tie, sums in another order change nothing, and at a tie one code among thousands.
    assert of_run == pytest.approx(trained, rel=1e-4)
    assert nll(lowbit, file, text, tmp_path / "file.json", "--windows", 8) == pytest.approx(of_run, rel=1e-6)

    done = lowbit("verify", file)
    assert done.status == 0, done.err
    assert re.search("activations 4-bit inputs, 4-bit keys and values: as trained", done.out)
    assert re.search(r"activations\.cache\.bits +4", lowbit("inspect", file).out)

    for command in (["eval", file, "--backend", "numpy", "--data", text], ["generate", file, "--prompt", "The"]):
        done = lowbit(*command)
        assert done.status == 2
        assert "made for 4-bit inputs, 4-bit keys and values, which the runtimes without jax do not" in done.err
        assert "--backend jax" in done.err
    for form, name in (("gguf", "model.gguf"), ("hf", "folder")):
        done = lowbit("export", file, "--to", form, "-o", tmp_path / name)
        assert done.status == 2
        assert re.search("made for 4-bit inputs, 4-bit keys and values, which (llama.cpp|transformers) does", done.err)
    for flags in ((), ("--kv-bits", "8-minmax")):
        done = lowbit("generate", file, "--prompt", "The", "--backend", "jax", "--tokens", 3, *flags)
        assert done.status == 0, done.err


@pytest.mark.parametrize("name", ["w4a4kv4", "w4a4kv4.lowbit"])
def test_quantizing_again_does_not_lose_the_rounding_silently(lowbit, text, folder, tmp_path, name):
    command = ("quantize", folder / name, "--method", "rtn", "--bits", 4, "-o", tmp_path / "again.lowbit")
    for flags, missing in (
        ((), "--activations (such as --activations float) and --kv-bits (such as --kv-bits 16)"),
        (("--kv-bits", 8), "--activations (such as --activations float)"),
        (("--activations", "int8-dynamic"), "--kv-bits (such as --kv-bits 16)"),
    ):
        done = lowbit(*command, *flags)
        assert done.status == 2
        assert f"{name} was made for 4-bit inputs, 4-bit keys and values, and quantize goes on from its" in done.err
        assert f"say what takes the place of that: {missing}\n" in done.err
    floats = ("--activations", "float", "--kv-bits", 16)
    done = lowbit(*command, *floats, "--eval", text)
    assert done.status == 2
    assert "--eval compares with" in done.err
    assert "no such model was\n  -> leave out --eval" in done.err
    assert not list(tmp_path.iterdir())
    done = lowbit(*command, *floats)
    assert done.status == 0, done.err
    assert "activations" not in formats.read(tmp_path / "again.lowbit").meta


def test_a_file_with_another_rounding_is_not_the_trained_model(lowbit, folder, tmp_path):
    run = folder / "w4a4kv4"
    packed = formats.read(folder / "w4a4kv4.lowbit")
    packed.meta["activations"]["cache"]["bits"] = 8
    formats.write(tmp_path / "other.lowbit", packed)
    done = lowbit("verify", tmp_path / "other.lowbit", "--against", run)
    assert done.status == 1
    assert re.search(r"4-bit inputs, 8-bit keys and values, and .* 4-bit keys and values: NOT as trained", done.out)


def test_plain_rounding_of_weights_activations_and_cache(lowbit, save_model, text, tmp_path):
    model = save_model()
    flags = ("--method", "rtn", "--bits", 4)
    figures = [
        nll(lowbit, model, text, tmp_path / f"{number}.json", *flags, *more)
        for number, more in enumerate(
            [(), ("--kv-bits", 4), ("--activations", "int4-dynamic", "--kv-bits", "4-minmax")]
        )
    ]
    assert len(set(figures)) == 3
    file = tmp_path / "w4a8.lowbit"
    done = lowbit("export", model, *flags, "--activations", "int8-dynamic", "-o", file)
    assert done.status == 0, done.err
    done = lowbit("verify", file)
    assert done.status == 0, done.err
    assert "activations 8-bit inputs: not compared, as the file alone says how" in done.out
    assert "as trained" not in done.out
    # Eight bits a token is what the integer path of the runtimes does, and they take it without being told.
    rounded = [nll(lowbit, file, text, tmp_path / f"{name}.json", "--backend", name) for name in ("jax", "numpy")]
    assert rounded[1] == pytest.approx(rounded[0], rel=1e-3)
    done = lowbit("generate", file, "--prompt", "The", "--tokens", 2)
    assert done.status == 0
    assert "int8 activations" in done.err
    done = lowbit("generate", file, "--prompt", "The", "--tokens", 2, "--activations", "float32")
    assert done.status == 2
    assert "the model was made for 8-bit inputs, and float32 activations are asked for" in done.err


def test_quantizing_keeps_what_the_cache_was_rounded_to(lowbit, save_model, folder):
    flags = ("--method", "rtn", "--bits", 4, "--activations", "int8-dynamic", "--kv-bits", "4-minmax")
    model = save_model()
    for output in (folder / "rtn.lowbit", folder / "rtn_run"):
        done = lowbit("quantize", model, *flags, "-o", output)
        assert done.status == 0, done.err
    assert lowbit("export", folder / "rtn_run", "-o", folder / "rtn_run.lowbit").status == 0
    direct, through = (formats.read(folder / f"{name}.lowbit") for name in ("rtn", "rtn_run"))
    rounding, _ = from_meta(direct.meta, LlamaConfig.from_hf(direct.config))
    assert rounding.cache == CacheKind(4, symmetric=False)
    assert dict(rounding.inputs) == dict.fromkeys(LINEARS, InputRounding(8))
    assert through.meta["activations"] == direct.meta["activations"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--activations", "int8"), "unknown --activations 'int8'\n  -> give int8-dynamic"),
        (("--activations", "int8-static"), "int8-static needs calibration\n  -> take int8-dynamic, or calibrate by"),
        (("--activations", "int9-dynamic"), "--activations int9-dynamic: no integers of 9 bits\n  -> take 2 to 8 bits"),
        (("--activations", "int16-dynamic"), "--activations int16-dynamic: no integers of 16 bits\n  -> take 2 to 8"),
        (("--activations", "int08-dynamic"), "unknown --activations 'int08-dynamic'\n  -> give int8-dynamic"),
        (("--kv-bits", "16-minmax"), "--kv-bits 16-minmax: 16 leaves keys and values as they are\n  -> give 16 alone"),
        (("--kv-bits", "3"), "the cache cannot hold keys and values of 3 bits\n  -> choose 4 or 8"),
        (("--kv-bits", "4-max"), "unknown form 'max' of --kv-bits 4-max\n  -> give a width alone, or 4-minmax"),
        (("--kv-bits", "four"), "--kv-bits is an int, which 'four' is not"),
    ],
)
def test_flags_that_cannot_be_are_refused(lowbit, save_model, text, flags, message):
    done = lowbit("eval", save_model(), "--method", "rtn", "--bits", 4, *flags, "--data", text)
    assert done.status == 2
    assert message in done.err


def test_flags_are_not_for_what_is_quantized(lowbit, folder, text):
    done = lowbit("eval", folder / "w4a4kv4.lowbit", "--kv-bits", 8, "--data", text)
    assert done.status == 2
    assert "--kv-bits: they round pretrained models" in done.err
