"""A model that writes English: all runtimes write the same tokens, on the command line too."""

import re

import pytest

from lowbit import formats
from lowbit.cli import main
from lowbit.cli.threads import VARIABLES
from lowbit.generation import Generator
from lowbit.kernels import Runtime, Tokenizer

TEXT = "The history of the city"
TOKENS = 16


@pytest.mark.parametrize(
    ("bits", "activations"), [(2, "float32"), (4, "int8"), pytest.param(4, "float32", marks=pytest.mark.slow)]
)
def test_all_runtimes_write_the_same_tokens(quickstart, bits, activations):
    packed = quickstart(bits)
    prompt = Tokenizer(packed).encode(TEXT)
    expected = list(Runtime(packed, activations=activations).generate(prompt, TOKENS, stop_tokens=[]))
    compiled = Runtime(packed, kernels="auto", activations=activations)  # numpy again where there is no compiler
    assert list(compiled.generate(prompt, TOKENS, stop_tokens=[])) == expected
    generator = Generator.from_packed(packed, activations=activations)
    assert generator.generate([prompt, prompt[:2]], TOKENS, stop_tokens=[]).rows()[0] == expected


@pytest.fixture
def lowbit(capfd, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")

    def run(*arguments):
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def path(quickstart, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "w4.lowbit"
    formats.write(path, quickstart(4))
    return path


def test_both_backends_print_the_same_text_and_their_speed(lowbit, path):
    command = ("generate", path, "--prompt", "Der Bär: ", "--max-tokens", 8)
    numpy_status, numpy_text, _ = lowbit(*command, "--activations", "float32")
    status, text, speed = lowbit(*command, "--backend", "jax")
    assert (numpy_status, status) == (0, 0)
    assert text == numpy_text
    assert text.startswith("Der Bär: ")
    rate = r"[\d.]+ tokens/s"
    assert re.fullmatch(
        rf"8 tokens; the first after [\d.]+ s \(prompt of \d+: {rate}\), then {rate} \(jax on \w+\)\n", speed
    )
    status, whole, speed = lowbit(*command, "--backend", "jax", "--no-stream", "--storage", "float32")
    assert (status, whole) == (0, text)
    assert re.fullmatch(rf"8 tokens after a prompt of \d+ in [\d.]+ s: {rate} \(jax on \w+\)\n", speed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kv-bits", "8"], "--kv-bits is not for --backend numpy"),
        (["--backend", "jax", "--threads", "2"], "--threads is not for --backend jax"),
        (["--backend", "jax", "--kv-bits", "5"], "argument --kv-bits: invalid choice: '5'"),
        (["--backend", "jax", "--storage", "float32", "--activations", "int8"], "int8 needs the codes of the file"),
        (["--top-k", "5"], "--top-k says what to draw from, and --temperature 0 draws nothing"),
        (["--backend", "jax", "--tokens", "4000"], "do not fit the model's 2048 positions"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(lowbit, path, flags, message):
    status, _, errors = lowbit("generate", path, "--prompt", "The", *flags)
    assert status == 2
    assert message in errors


def test_numpy_runs_packed_files_alone(lowbit):
    status, _, errors = lowbit("generate", "some/model", "--prompt", "The", "--backend", "numpy")
    assert status == 2
    assert "--backend numpy runs packed files, and some/model is none" in errors
