"""The NEON kernels, compiled for ARM and run under an emulator, against the same references as all others."""

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lowbit.formats import PackedModel, PackedTensor
from lowbit.kernels import Runtime, build, library, matmul_int8
from lowbit.kernels.compiled import CompiledWeights
from lowbit.kernels.decoder import rotation
from lowbit.kernels.matrix import CompiledMatrix
from lowbit.llama import rope_frequencies

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-gcc", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"
GRIDS = {
    "binary": [-1, 1],
    "ternary": [-2 / 3, 0, 2 / 3],
    "seq2": [-0.75, -0.25, 0.25, 0.75],
    "int3": range(-4, 4),
    "int4": range(-8, 8),
    "int8": range(-128, 128),
}
EPS = float(np.finfo(np.float32).eps)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason="apt install gcc-aarch64-linux-gnu qemu-user-static",
    ),
]


class Emulated:
    """The driver of other_machine.c with one of the instruction sets."""

    def __init__(self, program: Path, isa: str):
        command = [EMULATOR, "-L", LIBRARIES, str(program), isa]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request: bytes, shape: tuple[int, ...]) -> np.ndarray:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(request)
        self._process.stdin.flush()
        size = 4 * int(np.prod(shape))
        answer = self._process.stdout.read(4 + size)
        assert struct.unpack("<i", answer[:4]) == (library.OK,)
        return np.frombuffer(answer[4:], np.float32).reshape(shape)

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm")
    build.build(folder / build.LIBRARY, [COMPILER], "aarch64")
    driver = Path(__file__).with_name("other_machine.c")
    command = [COMPILER, "-O1", f"-I{build.SOURCES}", str(driver), str(folder / build.LIBRARY), f"-Wl,-rpath,{folder}"]
    subprocess.run([*command, "-o", str(folder / "driver")], check=True)
    return folder / "driver"


@pytest.fixture(scope="module", params=["neon", "c"])
def machine(program: Path, request: pytest.FixtureRequest) -> Iterator[Emulated]:
    emulated = Emulated(program, request.param)
    yield emulated
    emulated.close()


def serialized(matrix: CompiledMatrix) -> bytes:
    """The struct with sizes for pointers, and what they point to."""
    struct_copy = library.Matrix.from_buffer_copy(matrix.struct)
    held = {array.ctypes.data: array for array in matrix._held}
    parts = [held[at].tobytes() if at else b"" for at in (struct_copy.data, struct_copy.scale, struct_copy.zero)]
    parts.append(held[struct_copy.levels].tobytes() if struct_copy.levels else b"")
    for name, part in zip(("data", "scale", "zero", "levels"), parts, strict=True):
        setattr(struct_copy, name, len(part))
    return bytes(struct_copy) + b"".join(parts)


def product(machine: Emulated, w: PackedTensor | np.ndarray, x: np.ndarray, mode: int, threads: int) -> np.ndarray:
    matrix = CompiledMatrix(w, "c", 1)
    sizes = struct.pack("<3q", len(x), mode, threads)
    return machine.ask(b"m" + serialized(matrix) + sizes + x.tobytes(), (len(x), matrix.n))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("group", "groups"), [(64, 1), (32, 3), (7, 2), (33, 1), (1, 1)])
def test_8_bit_products_equal_the_reference_bit_for_bit(machine: Emulated, grid: str, group: int, groups: int) -> None:
    rng = np.random.default_rng(group)
    levels = np.array(list(GRIDS[grid]), np.float32)
    for n, tokens, zero in [(16, 1, False), (37, 4, True), (5, 7, False)]:
        codes = rng.integers(0, len(levels), (group * groups, n)).astype(np.uint8)
        scale, zeros = rng.uniform(0.1, 1, (2, groups, n)).astype(np.float16)
        w = PackedTensor.from_codes(codes, scale, levels, grid, zero=zeros if zero else None)
        x = rng.normal(size=(tokens, group * groups)).astype(np.float32)
        np.testing.assert_array_equal(product(machine, w, x, library.INT8, 2), matmul_int8(x, w))
        weights = w.decode().astype(np.float64)
        zero_part = np.abs(zeros).max() if zero else 0
        magnitudes = np.abs(x) @ (np.abs(weights) + 2 * zero_part)
        got = product(machine, w, x, library.FLOAT, 1)
        assert (np.abs(got - x @ weights) <= (group * groups + groups + 4) * EPS * magnitudes).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_float_matrices(machine: Emulated, dtype: type) -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(131, 21)).astype(dtype), rng.normal(size=(5, 131)).astype(np.float32)
    bound = 133 * EPS * (np.abs(x) @ np.abs(w.astype(np.float64)))
    assert (np.abs(product(machine, w, x, library.FLOAT, 2) - x @ w.astype(np.float64)) <= bound).all()


def test_a_forward_pass(machine: Emulated, make_packed: Callable[..., PackedModel]) -> None:
    packed = make_packed()
    runtime = Runtime(packed, kernels="c", threads=1)
    config, weights = runtime.config, runtime.weights
    assert isinstance(weights, CompiledWeights)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 21))
    x = weights.rows("embed.embedding", tokens)
    cos, sin = rotation(np.arange(21), *rope_frequencies(config))
    request = b"f" + bytes(weights._model) + struct.pack("<2q", 21, 2)
    for layer in range(config.num_layers):
        at = f"layers.{layer}"
        for name in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"):
            request += serialized(weights.matrices[f"{at}.{name}_proj.kernel"])
        request += b"".join(weights._vectors[f"{at}.{name}_norm.scale"].tobytes() for name in ("attn", "mlp"))
    request += b"".join(array.tobytes() for array in (weights._vectors["norm.scale"], x, cos, sin))
    got = machine.ask(request, (21, config.hidden_size))
    expected = runtime.hidden(tokens)[0]
    assert np.abs(got - expected).max() <= 1000 * EPS * np.abs(expected).max()  # see test_compiled_runtime.py
