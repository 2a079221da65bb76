"""The compiled decoder against the one in numpy, which is tested against slow float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit.errors import ConfigError, DataError, FormatError, KernelError
from lowbit.formats import BFloat16, PackedModel, PackedTensor
from lowbit.kernels import Runtime, build, library

MakePacked = Callable[..., PackedModel]
# 21 tokens: more than one block of queries (16), and less than two.
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 21))

# About 500 roundings in a row lie along the path of a logit (see test_runtime.py), here with exponentials and roots of
# their own; a norm may double what comes in. An error of the algorithm is of the logits' own size.
TOLERANCE = 1000 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module", params=library.supported())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_logits_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_logits_equal_those_of_numpy(
    make_packed: MakePacked, variant: dict[str, Any], isa: str, activations: Any
) -> None:
    """8-bit activations too: a rounding that falls on the other side would show, and for these numbers none does."""
    packed = make_packed(variant)
    got = Runtime(packed, kernels=isa, activations=activations).forward(TOKENS)
    assert_logits_close(got, Runtime(packed, activations=activations).forward(TOKENS))


def test_8_bit_activations_are_another_function(make_packed: MakePacked) -> None:
    packed = make_packed()
    exact, rounded = (Runtime(packed, activations=a).forward(TOKENS) for a in ("float32", "int8"))
    assert np.abs(exact - rounded).max() > 10 * TOLERANCE * np.abs(exact).max()


@pytest.mark.parametrize("pieces", [[21], [1] * 21, [8, 13], [3, 17, 1]])
def test_cached_pieces_equal_one_pass(make_packed: MakePacked, isa: str, pieces: list[int]) -> None:
    """The first and the last tokens of a long piece take the path with transposed keys, single tokens the other."""
    runtime = Runtime(make_packed(), kernels=isa, threads=2)
    cache = runtime.new_cache(batch=2)
    parts, start = [], 0
    for size in pieces:
        parts.append(runtime.forward(TOKENS[:, start : start + size], cache))
        start += size
        assert cache.length == start
    assert_logits_close(np.concatenate(parts, axis=1), runtime.forward(TOKENS))


def test_the_number_of_threads_changes_nothing(make_packed: MakePacked, isa: str) -> None:
    packed = make_packed()
    first = Runtime(packed, kernels=isa, threads=1).forward(TOKENS)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(Runtime(packed, kernels=isa, threads=threads).forward(TOKENS), first)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "untransposed"])
def test_every_kind_of_embedding_works(make_packed: MakePacked, isa: str, kind: str) -> None:
    packed = make_packed()
    embedding = packed.tensors["embed.embedding"]
    assert isinstance(embedding, PackedTensor)
    new: Any
    if kind == "untransposed":
        scale = np.full((1, 1), 0.2, np.float16)
        new = PackedTensor.from_codes(embedding.codes().T, scale, embedding.levels, embedding.grid)
    else:
        new = embedding.decode()
        new = BFloat16.from_float32(new) if kind == "bfloat16" else new.astype(kind)
    changed = replace(packed, tensors=packed.tensors | {"embed.embedding": new})
    got = Runtime(changed, kernels=isa).forward(TOKENS)
    assert_logits_close(got, Runtime(changed, activations="int8").forward(TOKENS))


def test_kernels_that_stayed_float_and_codebooks_are_multiplied_as_floats(make_packed: MakePacked, isa: str) -> None:
    packed = make_packed()
    up, down = "layers.0.mlp.up_proj.kernel", "layers.1.mlp.down_proj.kernel"
    tensor = packed.tensors[down]
    assert isinstance(tensor, PackedTensor)
    codebook = replace(tensor, levels=np.array([-0.9, -0.2, 0.15, 0.8], np.float32), grid="book")
    floats = packed.tensors[up].decode().astype(np.float16)  # type: ignore[union-attr]
    changed = replace(packed, tensors=packed.tensors | {up: floats, down: codebook})
    got = Runtime(changed, kernels=isa).forward(TOKENS)
    assert_logits_close(got, Runtime(changed, activations="int8").forward(TOKENS))


def test_greedy_text_is_that_of_numpy(make_packed: MakePacked, isa: str) -> None:
    packed = make_packed()
    texts = [
        list(Runtime(packed, kernels=kernels, activations="int8").generate([1, 7, 39], 40, stop_tokens=()))
        for kernels in (isa, "numpy")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40


def test_memory_is_that_of_the_codes(make_packed: MakePacked, isa: str) -> None:
    packed = make_packed()
    compiled, floats = Runtime(packed, kernels=isa), Runtime(packed)
    assert compiled.weights.nbytes < floats.weights.nbytes


def test_bad_choices_are_refused(make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make_packed()
    with pytest.raises(ConfigError, match=r"unknown kernels 'avx51'\n  -> did you mean 'avx512'"):
        Runtime(packed, kernels="avx51")
    with pytest.raises(ConfigError, match="storage 'packed' is for numpy, not for c kernels"):
        Runtime(packed, kernels="c", storage="packed")
    with pytest.raises(ConfigError, match="0 threads\n  -> ask for one or more"):
        Runtime(packed, kernels="c", threads=0)
    with pytest.raises(ConfigError, match="unknown activations 'int7'"):
        Runtime(packed, activations="int7")
    with pytest.raises(ConfigError, match="unknown activations 'int7'"):
        Runtime(packed, kernels="c", activations="int7")
    monkeypatch.setattr(library, "supported", lambda: ("c",))
    with pytest.raises(ConfigError, match=r"no avx512 kernels\n  -> choose from auto, numpy, c"):
        Runtime(packed, kernels="avx512")


def test_the_environment_chooses_for_auto(make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make_packed()
    monkeypatch.setenv(library.CHOICE_VARIABLE, "c")
    assert Runtime(packed, kernels="auto").kernels == "c"
    monkeypatch.setenv(library.CHOICE_VARIABLE, "numpy")
    assert Runtime(packed, kernels="auto").kernels == "numpy"
    monkeypatch.setenv(library.CHOICE_VARIABLE, "fast")
    with pytest.raises(ConfigError, match="unknown kernels 'fast' in LOWBIT_KERNELS"):
        Runtime(packed, kernels="auto")
    monkeypatch.delenv(library.CHOICE_VARIABLE)
    assert Runtime(packed, kernels="auto").kernels == library.supported()[0]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv(library.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(library.CHOICE_VARIABLE, raising=False)
    monkeypatch.setattr(library, "installed_library", lambda: tmp_path / "nothing.so")
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_numpy_computes_and_says_so(make_packed: MakePacked) -> None:
    packed = make_packed()
    with pytest.warns(RuntimeWarning, match="no-such-compiler is not there; numpy computes in their place"):
        runtime = Runtime(packed, kernels="auto")
    assert runtime.kernels == "numpy"
    with pytest.raises(KernelError, match=r"cannot be made: no C compiler: no-such-compiler .*\n  -> install a C comp"):
        Runtime(packed, kernels="c")


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho this compiler is broken\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    with pytest.raises(build.BuildError, match="this compiler is broken"):
        build.build(tmp_path / "out" / build.LIBRARY, [str(tmp_path / "cc")])
    assert not (tmp_path / "out" / build.LIBRARY).exists()


def test_hidden_states_that_are_not_finite_are_an_error(make_packed: MakePacked, isa: str) -> None:
    packed = make_packed()
    norm = packed.tensors["layers.1.mlp_norm.scale"]
    broken = BFloat16(np.full(norm.shape, 0x7F80, np.uint16))  # infinity
    runtime = Runtime(
        replace(packed, tensors=packed.tensors | {"layers.1.mlp_norm.scale": broken}), kernels=isa, threads=2
    )
    with pytest.raises(DataError, match="activations hold NaN or infinity"):
        runtime.forward(TOKENS)


def test_a_damaged_tensor_is_named(make_packed: MakePacked, isa: str) -> None:
    packed = make_packed()
    name = "layers.1.mlp.up_proj.kernel"
    kernel = packed.tensors[name]
    assert isinstance(kernel, PackedTensor)
    damaged = replace(kernel, scale=np.full_like(kernel.scale, np.nan))
    with pytest.raises(FormatError, match=r"tensor 'layers.1.mlp.up_proj.kernel': scale holds NaN"):
        Runtime(replace(packed, tensors=packed.tensors | {name: damaged}), kernels=isa)
