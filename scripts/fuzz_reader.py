"""Feeds damaged and forged files to the readers, many of them, and writes what came of it as JSON.

    python scripts/fuzz_reader.py --cases 100000 -o docs/results/fuzz.json

Targets: `packed` is `lowbit.formats.read` and the decoding of every tensor; `gguf` is `lowbit.gguf.read` and the
decoding of every block. Both need numpy alone, run under a limit of address space, and must end in a value or in an
error of their own: nothing else, not in more than a second, without opening another file, running code, or importing a
module. `model` is the whole way from a GGUF file to a float model and to a packed one, which has jax and the gguf
library below it, hence another limit.

A case is a sound file with 1 to 4 changes: flipped bits, bytes and words of extreme values, cuts, pieces moved, doubled
or of another file, numbers in the JSON header exchanged. Half of the damaged packed files are signed anew, so that
checks behind the checksum are reached. Seed and case make it again: --seed S --only N.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import FormatError, LowbitError, ModelError
from lowbit.formats import BFloat16, CodedScale, PackedModel, PackedTensor, decode, read, write
from lowbit.gguf import CODERS, GgufTensor, coder_for
from lowbit.gguf import read as read_gguf
from lowbit.gguf import write as write_gguf

MEGABYTE = 2**20
ROOM = {"packed": 256 * MEGABYTE, "gguf": 256 * MEGABYTE, "model": 4096 * MEGABYTE}
"""Address space beyond what the process has when it begins."""

SLOWEST = 1.0
_EXTREMES = (0, 1, 2, 7, 31, 64, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64 - 1)
_NUMBER = re.compile(rb"\d+")
_JSON_VALUES = (b"0", b"-1", b"1e999", b"99999999999999999999", b"null", b"[]", b'"x"', b"true", b"NaN", b"4294967296")
_DIGEST = re.compile(rb'"header_sha256":"([0-9a-f]{64})"')
# Names, numbers and bytes in a message: without them it says which check found the fault.
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[\d.e+-]+|\[[^\]]*\]|[^ -~]")
# What code that is run, or another file, would raise in the interpreter; reading makes none of them.
_FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess",
    "socket",
    "pickle",
    "ctypes",
)


def sound_packed() -> bytes:
    """A packed file with every packing, scales of both dtypes and as codes, zeros, all float dtypes and a tokenizer."""
    tensors: dict[str, Any] = {}
    for i, count in enumerate((2, 3, 4, 8, 16, 200)):
        codes = ((np.arange(30) * 7 + i) % count).astype(np.uint8).reshape(10, 3)
        scale = np.linspace(0.1, 1, 6 if i % 2 else 3).reshape(-1, 3).astype(np.float16 if i % 3 else np.float32)
        levels = np.arange(count, dtype=np.float32)
        zero = scale / 2 if i == 4 else None
        tensors[f"layers.0.w{count}.kernel"] = PackedTensor.from_codes(codes, scale, levels, f"g{count}", zero=zero)
    coded = CodedScale(
        np.arange(130, 160, dtype=np.uint8).reshape(3, 10), np.full(1, 0.01, np.float32), np.full(1, 0.5, np.float32)
    )
    tensors["layers.0.coded.kernel"] = PackedTensor.from_codes(
        codes, coded.decode(), levels, f"g{count}", coded_scale=coded
    )
    tensors["norm.scale"] = np.ones(3, np.float16)
    tensors["bias"] = np.ones((2, 1), np.float32)
    tensors["half"] = BFloat16.from_float32(np.ones(2, np.float32))
    model = PackedModel(tensors, {"model_type": "llama"}, {"tokenizer.json": b"{}"}, {"note": [1, 2.5]})
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "m", model)
        return (Path(folder) / "m").read_bytes()


def sound_gguf() -> bytes:
    """A GGUF file with every type of value and every coder's blocks."""
    tensors = {}
    for coder in CODERS:
        integers = np.resize(np.array(coder.integers, np.int8), (2, coder.kind.block))
        raw = coder.encode(integers, np.array([0.5, 1], np.float16))
        tensors[coder.kind.name] = GgufTensor(coder.kind, (2, coder.kind.block), raw)
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "flag": True,
        "number": 1.5,
        "texts": ["a", "bc", ""],
        "integers": np.arange(3, dtype=np.int32),
        "floats": np.ones(2, np.float32),
    }
    with tempfile.TemporaryFile() as file:
        write_gguf(file, metadata, tensors)
        file.seek(0)
        return file.read()


def sound_model() -> bytes:
    """A small model as GGUF, with a tokenizer and the record of its packed form."""
    from lowbit.export.gguf import to_gguf
    from lowbit.export.gguf import write_gguf as write_model
    from lowbit.kernels import unstacked_shapes
    from lowbit.llama import LlamaConfig

    cfg = LlamaConfig(5, 32, 64, 1, 2, 1, 16, max_positions=16, eos_token_ids=(0,))
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, shape in unstacked_shapes(cfg).items():
        tensors[name] = np.ones(shape, np.float16)
        if name.endswith("kernel"):
            codes = rng.integers(0, 16, shape).astype(np.uint8)
            coded = CodedScale(
                np.full((shape[1], 1), 130, np.uint8), np.full(1, 0.01, np.float32), np.full(1, 0.5, np.float32)
            )
            coded_scale = coded if name.endswith("v_proj.kernel") else None
            levels = np.arange(-8, 8, dtype=np.float32)
            tensors[name] = PackedTensor.from_codes(codes, coded.decode(), levels, "int4", coded_scale=coded_scale)
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"<end>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
    }
    packed = PackedModel(tensors, cfg.to_hf(), {"tokenizer.json": json.dumps(tokenizer).encode()})
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "m.gguf", to_gguf(packed, "m"))
        return (Path(folder) / "m.gguf").read_bytes()


def use_packed(path: Path) -> None:
    """Opens a packed file, decodes what it holds, and compares checksums."""
    for tensor in read(path).tensors.values():
        with contextlib.suppress(FormatError), np.errstate(all="ignore"):
            decode(tensor)
    read(path, verify=True)


def use_gguf(path: Path) -> None:
    """Opens a GGUF file and decodes its blocks."""
    for tensor in read_gguf(path).tensors.values():
        coder = coder_for(tensor.kind)
        if coder is not None:
            with contextlib.suppress(ModelError):
                coder.decode(tensor.data.reshape(-1, tensor.kind.nbytes))


def use_model(path: Path) -> None:
    """Loads a GGUF file as a float model, and as the packed model it was made of."""
    from lowbit.export.gguf_record import from_gguf
    from lowbit.models import load

    with np.errstate(all="ignore"):
        with contextlib.suppress(LowbitError):
            load(path)
        from_gguf(path).check_contents()


TARGETS: dict[str, tuple[Callable[[], bytes], Callable[[Path], None]]] = {
    "packed": (sound_packed, use_packed),
    "gguf": (sound_gguf, use_gguf),
    "model": (sound_model, use_model),
}


def damaged(sound: bytes, rng: np.random.Generator) -> bytes:
    """Returns a file with 1 to 4 changes."""
    raw = bytearray(sound)
    # The head is small beside the arrays and has more to get wrong.
    head = len(raw) if rng.integers(2) else min(len(raw), 8 + int.from_bytes(raw[:8], "little"), 4096)
    for _ in range(int(rng.integers(1, 5))):
        if not raw:
            break
        at = int(rng.integers(min(head, len(raw))))
        size = int(rng.integers(1, 33))
        match int(rng.integers(8)):
            case 0 | 1:
                raw[at] ^= 1 << int(rng.integers(8))
            case 2:
                raw[at] = int(rng.integers(256))
            case 3:
                width = int(rng.choice([4, 8]))
                extreme = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
                raw[at : at + width] = extreme.to_bytes(8, "little")[:width]
            case 4:
                del raw[at : len(raw) if rng.integers(2) else at + size]
            case 5:
                raw[at:at] = raw[at : at + size] if rng.integers(2) else rng.bytes(size)
            case 6:
                other = int(rng.integers(len(raw)))
                raw[at : at + size] = raw[other : other + size]
            case _:
                numbers = list(_NUMBER.finditer(raw, 0, min(head, len(raw))))
                if numbers:
                    match_ = numbers[int(rng.integers(len(numbers)))]
                    raw[match_.start() : match_.end()] = _JSON_VALUES[int(rng.integers(len(_JSON_VALUES)))]
    return bytes(raw)


def signed(raw: bytes) -> bytes:
    """Returns a packed file with the length of its header put right and the header signed anew, where it has one."""
    end = raw.rfind(b"}", 0, max(raw.find(b"\0", 9), 9))
    if end < 0 or not _DIGEST.search(raw):
        return raw
    end += 1
    while (end % 64) and raw[end : end + 1] == b" ":
        end += 1
    head = (end - 8).to_bytes(8, "little") + _DIGEST.sub(b'"header_sha256":"' + b"0" * 64 + b'"', raw[8:end])
    return _DIGEST.sub(b'"header_sha256":"' + hashlib.sha256(head).hexdigest().encode() + b'"', head) + raw[end:]


def run(target: str, cases: Iterator[int], seed: int) -> dict[str, Any]:
    """Runs cases of a target; raises whatever a reader lets through, with the case's number on stderr."""
    make, use = TARGETS[target]
    sound = make()
    outcomes: Counter[str] = Counter()
    kinds: set[str] = set()
    slowest = (0.0, -1)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    path = folder / "case.gguf"
    path.write_bytes(sound)
    use(path)  # whatever is imported or compiled at the first use is so by now
    limit = _address_space() + ROOM[target]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = _Watch(folder, everything=target != "model")
    sys.addaudithook(watch)
    begun = time.perf_counter()
    for case in cases:
        rng = np.random.default_rng([seed, case])
        raw = damaged(sound, rng)
        raw = signed(raw) if target == "packed" and case % 2 else raw
        path.write_bytes(raw)
        start = time.perf_counter()
        try:
            with watch:
                use(path)
            outcomes["read"] += 1
        except LowbitError as error:
            outcomes[type(error).__name__] += 1
            kinds.add(_VARYING.sub("", error.cause.replace(str(path), ""))[:60])
            if str(path) not in str(error) and target != "model":
                raise AssertionError(f"case {case}: the error does not name the file: {error}") from error
        except BaseException:
            print(f"{target} case {case} of seed {seed}", file=sys.stderr)
            (Path(tempfile.gettempdir()) / f"fuzz_{target}_{case}").write_bytes(raw)
            raise
        slowest = max(slowest, (time.perf_counter() - start, case))
    if slowest[0] > SLOWEST:
        raise AssertionError(f"case {slowest[1]} took {slowest[0]:.1f} s")
    path.unlink()
    folder.rmdir()
    return {
        "cases": outcomes.total(),
        "seed": seed,
        "outcomes": dict(sorted(outcomes.items())),
        "kinds_of_errors": len(kinds),
        "crashes": 0,
        "slowest_case_ms": round(1e3 * slowest[0], 1),
        "room_mb": ROOM[target] // MEGABYTE,
        "peak_growth_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
        "seconds": round(time.perf_counter() - begun, 1),
    }


class _Watch:
    """An audit hook that refuses, between enter and exit, what reading a file has no business with."""

    def __init__(self, folder: Path, everything: bool):
        self.folder = str(folder)
        self.everything = everything
        self.on = False

    def __enter__(self) -> None:
        self.on = self.everything

    def __exit__(self, *_: object) -> None:
        self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(_FORBIDDEN):
            raise AssertionError(f"reading a file made {event} {arguments[:2]}")
        if event == "open" and (not str(arguments[0]).startswith(self.folder) or str(arguments[1]) not in "rb None"):
            raise AssertionError(f"reading a file opened {arguments[:2]}")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Runs each target in a process of its own, since limits do not go up again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="of packed files; half as many GGUF, a 50th models")
    parser.add_argument("--target", choices=tuple(TARGETS), help="only this one (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case again")
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    shares = {"packed": 1, "gguf": 2, "model": 50}
    results = {}
    for target in [arguments.target] if arguments.target else TARGETS:
        count = -(-arguments.cases // shares[target])
        numbers = range(count) if arguments.only is None else range(arguments.only, arguments.only + 1)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, json.dumps(run(target, iter(numbers), arguments.seed)).encode())
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        if os.waitpid(child, 0)[1]:
            return 1
        results[target] = json.loads(told)
        print(target, told, flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
