"""What a user can get wrong: each mistake has a message with its mend, status 2, and leaves no half-written file."""

import errno
import json
import re
import shutil
import struct

import numpy as np
import pytest

from lowbit import formats


@pytest.fixture
def refused(lowbit):
    """Returns refused(message pattern, *arguments), which fails unless the command is refused with this message."""

    def check(message, *arguments):
        done = lowbit(*arguments)
        assert done.status == 2, done.out + done.err
        assert re.match(r"lowbit: error: .+\n  -> .+\n\Z", done.err), done.err
        assert re.search(message, done.err), done.err

    return check


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "x"], r"unknown command 'trian'\n  -> did you mean 'train'"),
        (["--verson"], r"unknown flag '--verson'\n  -> did you mean '--version'"),
        (["generate", "f", "--promt", "x"], r"generate has no flag '--promt'\n  -> did you mean '--prompt'"),
        (["eval", "x", "--data", "y", "--length=0"], "argument --length: '0' is no whole number of 1 or more"),
        (["generate", "f", "--prompt", "x", "--seed", "-1"], "argument --seed: '-1' is no whole number of 0 or more"),
        (["generate", "f"], "the following arguments are required: --prompt"),
        (
            ["inspect", "f", "g"],
            r"unrecognized arguments: g\n  -> write python -m lowbit inspect PACKED \[flags\], or see",
        ),
        (
            ["eval", "--data", "x", "f"],
            r"required: SOURCE\n  -> write python -m lowbit eval SOURCE",
        ),
        (["eval", "x", "--data", "y", "--backend", "torch"], "invalid choice: 'torch'"),
        (["train", "c.py", "--config.quant.bits", "2"], r"sets nothing\n  -> write --config\.quant\.bits=VALUE"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_command_line(refused, arguments, message):
    refused(message, *arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quant.bits=5", r"no grid has 5.0 bits per weight\n  -> widths are 1, 1.58, 2, 3, 4"),
        ("quant.method=paretok", r"unknown quantization method 'paretok'\n  -> did you mean 'paretoq'"),
        ("quant.bit=2", r"unknown config key 'quant.bit'\n  -> did you mean 'quant.bits'"),
        ("quant.bits=two", "config key quant.bits is a float, which 'two' is not"),
        ("quant.granularity=7", r"cannot take: layers/attn/q_proj/kernel .*a group of 7 does not divide the 32 inputs"),
        ('quant.overrides=(("layers/atn/.*", {"bits": 4}),)', r"rule 'layers/atn/\.\*' matches nothing; the paths are"),
        ("optimizer.frozen=params/embd/.*", r"rule 'params/embd/\.\*' matches nothing; the paths are"),
        ("model.tokenizer=", r"is text, and the model has no tokenizer\n  -> set model.tokenizer"),
        ("model.tokenizer=nowhere", "no tokenizer.json in nowhere"),
        ("model.architecture.vocab_size=64", "has 4,096 tokens, the model's vocabulary 64"),
        ("train.tokens=8", "less than one step of 256 tokens"),
        ("data.train=absent.txt", "no text at absent.txt"),
        ("run_folder=", "run_folder is not set"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_train(refused, train_arguments, tmp_path, override, message):
    refused(message, *train_arguments(tmp_path / "run"), f"--config.{override}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/qat_quikstart.py", r"config file 'configs/qat_quikstart.py' does not exist\n  -> did you mean"),
        ("configs/qat_quickstart.py:bit=2", r"unknown config variant 'bit'\n  -> did you mean 'bits'"),
        ("configs/qat_quickstart.py:bits=7", "no recipe for bits 7"),
    ],
)
def test_config_file(refused, monkeypatch, request, config, message):
    monkeypatch.chdir(request.config.rootpath)
    refused(message, "train", config)


def test_run_folder_that_exists(refused, train_arguments, run_folder):
    before = sorted(run_folder.rglob("*"))
    refused(r"run folder .* exists\n  -> resume the run", *train_arguments(run_folder))
    refused(r"is finished", *train_arguments(run_folder), "--resume")
    assert sorted(run_folder.rglob("*")) == before


def test_checkpoint_of_another_config(refused, train_arguments, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # as if it had been stopped
    arguments = train_arguments(tmp_path / "run")
    refused(r"of another config: quant\.bits differ", *arguments, "--config.quant.bits=3", "--resume")


def test_text_that_is_empty_or_too_short(refused, packed, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    refused(r"empty\.txt is empty", "eval", packed, "--data", tmp_path / "empty.txt")
    (tmp_path / "short.txt").write_text("The ship lay in the bay.")
    refused(
        r"short\.txt holds \d+ tokens, and a window of 32 needs at least T\+1 = 33",
        "eval",
        packed,
        "--data",
        tmp_path / "short.txt",
        "--length",
        32,
    )
    np.save(tmp_path / "other.npy", np.full(100, 5000, np.uint16))
    refused("holds token 5000 .*vocabulary of 4,096", "eval", packed, "--data", tmp_path / "other.npy", "--length", 8)


def test_more_than_there_is(refused, packed, text):
    refused(r"the first 9999 windows were asked for", "eval", packed, "--data", text, "--windows", 9999)
    refused(r"--length 65 exceeds the model's 64 positions", "eval", packed, "--data", text, "--length", 65)
    refused(r"65 tokens to compare logits at, and the model has 64", "verify", packed, "--tokens", 65)
    refused(r"do not fit the model's 64 positions", "generate", packed, "--prompt", "The", "--tokens", 64)
    refused(
        r"temperature -1.0 is out of range", "generate", packed, "--prompt", "The", "--temperature", "-1", "--tokens", 9
    )


def damaged(kind, content):
    if kind == "truncated":
        return content[:-100]
    if kind == "one byte long":
        return content[:1]
    if kind == "bit-flipped":
        changed = bytearray(content)
        changed[-1000] ^= 4
        return bytes(changed)
    if kind == "wrong version":
        return content.replace(b'"version":"1"', b'"version":"9"', 1)
    return b"no packed file at all, but some text" * 10


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"bad.lowbit: truncated: the arrays end at byte \d+"),
        ("one byte long", "bad.lowbit: 1 bytes are too few"),
        ("bit-flipped", r"bad.lowbit: tensor '.*': its bytes do not match their checksum\n  -> the file is damaged"),
        (
            "wrong version",
            r"bad.lowbit: the file has format version 9, this lowbit reads version 1\n  -> install a newer",
        ),
        ("text", "bad.lowbit: no packed file"),
    ],
)
def test_damaged_packed_file(refused, packed, tmp_path, kind, message):
    path = tmp_path / "bad.lowbit"
    path.write_bytes(damaged(kind, packed.read_bytes()))
    refused(message, "verify", path)
    refused(message, "inspect", path, "--checksums")
    refused(message, "generate", path, "--prompt", "The")
    refused(message, "eval", path, "--data", "never read.txt")


def test_checksums_are_skipped_only_when_asked(lowbit, refused, run_folder, packed, text, tmp_path):
    path = tmp_path / "inverted.lowbit"
    content = bytearray(packed.read_bytes())
    codes = formats.read(packed).tensors["layers.0.mlp.up_proj.kernel"].packed.tobytes()
    at = bytes(content).index(codes)
    content[at : at + len(codes)] = bytes(255 - byte for byte in codes)  # codes all the same, of another model
    path.write_bytes(content)
    message = r"inverted.lowbit: tensor 'layers\.0\.mlp\.up_proj\.kernel\.codes': its bytes do not match"
    generate = ("generate", path, "--prompt", "The", "--tokens", 2)
    evaluate = ("eval", path, "--data", text, "--windows", 2, "--length", 16)
    for command in (generate, evaluate):
        refused(message, *command)
        done = lowbit(*command, "--no-verify")
        assert done.status == 0, done.err
    refused("--no-verify is for packed files", "eval", run_folder, "--data", text, "--no-verify")


def test_packed_file_that_is_not_there(refused):
    for name, *flags in (["inspect"], ["verify"], ["generate", "--prompt", "x"], ["eval", "--data", "x.txt"]):
        refused("absent.lowbit: cannot be read: No such file", name, "absent.lowbit", *flags)


def test_packed_file_without_tokenizer(lowbit, refused, save_model, text, tmp_path):
    path = tmp_path / "bare.lowbit"
    # The export itself is no mistake: token files need no tokenizer.
    export = ("export", save_model(tokenizer=False), "--method", "float", "-o", path)
    assert lowbit(*export).status == 0
    refused("the packed model holds no tokenizer.json", "generate", path, "--prompt", "The")
    no_tokenizer = r"is text, and the model has no tokenizer\n  -> set model.tokenizer of a run, or give .npy"
    refused(no_tokenizer, "eval", path, "--data", text)


def test_tokenizer_of_another_model(refused, save_model, text):
    folder = save_model(vocab_size=64)
    refused("has 4,096 tokens, the model's vocabulary 64", "eval", folder, "--data", text, "--length", 32)


def test_model_family_that_is_not_supported(refused, float_model, tmp_path):
    folder = shutil.copytree(float_model, tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    refused("gpt2.*\n  -> .*llama", "export", folder, "--method", "rtn", "--bits", 4, "-o", tmp_path / "m.lowbit")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


@pytest.mark.parametrize(
    ("rounding", "message"),
    [
        ([], r"is a float model, and --method is missing\n  -> say how to round it"),
        (["--scale-init", "max"], r"is a float model, and --method is missing"),
        (["--method", "rtn"], "--method rtn needs --bits"),
        (["--method", "rtm", "--bits", 4], r"unknown quantization method 'rtm'\n  -> did you mean 'rtn'"),
        (["--method", "rtn", "--bits", 9], r"no grid of rounding has 9.0 bits\n  -> choose 1, 1.58, or an integer"),
        (["--method", "rtn", "--bits", "four"], "--bits is a float, which 'four' is not"),
        (["--method", "float", "--bits", 4], r"--method float has no choice of --bits\n  -> leave out --bits"),
        (["--method", "float", "--granularity", 16], "--method float has no choice of --granularity"),
        (["--method", "absmean_ternary", "--bits", 2], "--method absmean_ternary has no choice of --bits"),
        (
            ["--method", "llmqat", "--bits", 4, "--scale-init", "mse"],
            r"--method llmqat has no choice of --scale-init\n  -> leave out --scale-init",
        ),
        (
            ["--method", "rtn", "--bits", 4, "--granularity", 7],
            "layers/mlp/down_proj/kernel .*a group of 7 does not divide the 48",
        ),
        (["--method", "rtn", "--bits", 4, "--scale-init", "mx"], r"unknown scale start 'mx'\n  -> did you mean"),
    ],
)
def test_rounding(refused, float_model, tmp_path, rounding, message):
    refused(message, "export", float_model, *rounding, "-o", tmp_path / "m.lowbit")
    assert list(tmp_path.iterdir()) == []


def test_sources_that_do_not_fit_the_command(refused, run_folder, packed, text, tmp_path):
    output = tmp_path / "m.lowbit"
    two_bits = ("--method", "rtn", "--bits", 2)
    refused("is a packed file", "export", packed, "-o", output)
    refused("is quantized already", "export", run_folder, *two_bits, "-o", output)
    refused("is quantized already", "eval", packed, *two_bits, "--data", text)
    refused("is quantized already", "eval", run_folder, "--granularity", "tensor", "--data", text)
    for backend in ("numpy", "integer"):
        refused(f"--backend {backend} runs packed files", "eval", run_folder, "--backend", backend, "--data", text)
    refused("are floats, and integers cannot be multiplied", "eval", packed, "--backend", "integer", "--data", text)
    refused("is a packed file", "verify", packed, "--against", packed)
    refused("there is no model at", "export", tmp_path / "absent" / "model", *two_bits, "-o", output)
    assert not output.exists()


def test_outputs_are_refused_before_any_work(refused, packed, tmp_path):
    for command in (("export", "never/looked/at", "-o"), ("eval", "never/looked/at", "--data", "x", "-o")):
        refused(r"w2.lowbit exists\n  -> .*--overwrite", *command, packed)
        refused("is a folder", *command, tmp_path)
        refused(f"there is no folder {tmp_path}/absent", *command, tmp_path / "absent" / "file")


def test_verify_against_the_wrong_model(refused, packed, float_model, tmp_path):
    other = tmp_path / "other.lowbit"
    model = formats.read(packed)
    origin = {**model.meta["origin"], "path": str(tmp_path / "moved")}
    formats.write(other, formats.PackedModel(model.tensors, model.config, model.tokenizer, {"origin": origin}))
    refused(r"made from .*/moved, which cannot be read from here(.|\n)*--against", "verify", other)
    quant = {key: value for key, value in origin["quant"].items() if key != "scale_init"}
    older = {"origin": {**origin, "kind": "pretrained", "quant": quant}}
    formats.write(other, formats.PackedModel(model.tensors, model.config, model.tokenizer, older), overwrite=True)
    message = r"other.lowbit was rounded by lowbit \S+ with other settings than this one has: scale_init\n  -> export"
    refused(message, "verify", other)
    refused(message, "verify", other, "--against", float_model)
    formats.write(other, formats.PackedModel(model.tensors, model.config, model.tokenizer, {}), overwrite=True)
    refused(r"does not say what it was made from\n  -> .*--against RUN", "verify", other)
    formats.write(
        other, formats.PackedModel(model.tensors, model.config, model.tokenizer, {"quantization": {}}), overwrite=True
    )
    refused(r"other.lowbit was written by quantize(.|\n)*--against RUN", "verify", other)
    refused(r"of two architectures: .*intermediate_size 64 and 48", "verify", packed, "--against", float_model)


def test_tensors_that_are_not_those_of_the_config(refused, packed, text, tmp_path):
    model = formats.read(packed)
    del model.tensors["layers.1.attn.k_proj.kernel"]
    path = tmp_path / "lacking.lowbit"
    formats.write(path, model)
    for name, *flags in (["verify"], ["generate", "--prompt", "x"], ["eval", "--data", text]):
        refused(r"layers\.1\.attn\.k_proj\.kernel", name, path, *flags)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nmore"),
            "Out of memory allocating 7 bytes",
        ),
        (MemoryError(), "there is no memory left"),
        (OSError(errno.ENOSPC, "full", "w.json"), r"w\.json cannot be written: No space left"),
        (OSError(errno.EROFS, "read-only"), "a file cannot be written: Read-only file system"),
    ],
    ids=["device", "host", "disk", "read-only"],
)
def test_memory_and_disks_that_run_out(refused, monkeypatch, packed, error, message):
    def run(arguments):
        raise error

    monkeypatch.setattr("lowbit.cli.inspect.run", run)
    refused(rf"{message}.*\n  -> (make batches or windows smaller|free some|write to a)", "inspect", packed)


def test_prompt_that_is_no_text(refused, packed):
    refused("the prompt is no valid UTF-8 text", "generate", packed, "--prompt", "\udcff")


def test_packed_header_of_absurd_length(refused, tmp_path):
    path = tmp_path / "huge.lowbit"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100)
    refused("claims a header of", "inspect", path)
