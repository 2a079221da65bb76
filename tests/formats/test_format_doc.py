"""docs/format.md is what a reader in another language is written from: its examples and its C code must be right."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lowbit.formats import PACKINGS, PackedModel, PackedTensor, decode, pack, row_bytes, write

DOC = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def test_every_example_of_a_packed_row() -> None:
    rows = re.findall(r"^\| `(\w\d)` \| ([\d ]+) \| ((?:[0-9A-F]{2} ?)+?)(?: \(.*)? \|$", DOC, re.MULTILINE)
    assert {packing for packing, _, _ in rows} == set(PACKINGS)
    for packing, codes, expected in rows:
        packed = pack(np.array([codes.split()]).astype(np.uint8), packing)
        assert packed.tobytes() == bytes.fromhex(expected)


def test_the_example_file(tmp_path: Path) -> None:
    kernel = PackedTensor.from_codes(
        np.array([[0, 1, 2, 3, 0, 1], [3, 3, 0, 0, 2, 2]], np.uint8).T,
        np.array([[1, 0.5]], np.float16),
        np.array([-0.75, -0.25, 0.25, 0.75], np.float32),
        "seq2",
    )
    norm = np.array([1, 2], np.float16)
    write(tmp_path / "model", PackedModel({"a.kernel": kernel, "norm.scale": norm}, {"model_type": "llama"}))
    raw = (tmp_path / "model").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert f"{raw[:8].hex(' ')} {' ' * 36}N = {length}" in DOC

    example = DOC.partition("## An example")[2].partition("## ")[0]
    lines = [line.strip() for line in example.splitlines() if line.startswith("    ")]
    header = "".join(lines[1:-4])
    written = re.sub(r'(:\\"[0-9a-f]{8})[0-9a-f]{56}', r"\1...", raw[8 : 8 + length].decode().rstrip())
    assert header == written
    data = " ".join(re.match(r"(?:[0-9a-f]{2} ?)+", line)[0].strip() for line in lines[-4:])  # type: ignore[index]
    assert data == raw[8 + length :].hex(" ")
    assert decode(kernel).T.tolist() == [
        [-0.75, -0.25, 0.25, 0.75, -0.75, -0.25],
        [0.375, 0.375, -0.375, -0.375, 0.125, 0.125],
    ]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_c_code_reads_every_packing(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```c\n(.*?)```", DOC, re.DOTALL)).replace("static unsigned", "unsigned")
    source = tmp_path / "codes.c"
    source.write_text("#include <stddef.h>\n#include <stdint.h>\n" + code)
    library = tmp_path / "codes.so"
    subprocess.run(
        ["cc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)], check=True
    )
    c = ctypes.CDLL(str(library))
    rng = np.random.default_rng(0)
    for name, packing in PACKINGS.items():
        k = 27
        codes = rng.integers(0, packing.base, (1, k)).astype(np.uint8)
        row = pack(codes, name).tobytes()
        size, bits = ctypes.c_size_t(row_bytes(name, k)), ctypes.c_uint(round(packing.bits))
        for i in range(k):
            index = ctypes.c_size_t(i)
            got = c.code_trit(row, index) if name == "t5" else c.code_bits(row, size, index, bits)
            assert got == codes[0, i]
