"""Compiles the C kernels into one shared library, with the compiler that is there.

Knows the standard library alone: setup.py runs it when the package is installed, before anything else is.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "native"
LIBRARY = "liblowbit.so"
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-Wall")
"""No fusing of multiplication and addition: float results are the same on every processor."""

SHARED = ("team.c", "prepack.c", "library.c", "decoder.c")
INSTRUCTION_SETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {
        "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"),
        "AVX2": ("-mavx2", "-mfma", "-mf16c"),
        "C": (),
    },
    "aarch64": {"NEON": ("-march=armv8.2-a+dotprod",), "C": ()},
}
"""Of each architecture; others are compiled as plain C."""


class BuildError(Exception):
    """No compiler, or one that fails."""


def compiler() -> list[str]:
    """Returns the C compiler's command: what `CC` says, or the first of cc, gcc and clang.

    Raises:
      BuildError: there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler: {named[0]} is not there" if named else "no C compiler: neither cc, gcc nor clang")


def source_digest() -> str:
    """Returns what names a state of the sources and of the way they are compiled."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(target: Path, command: Sequence[str] | None = None, machine: str | None = None) -> None:
    """Compiles the library and puts it at `target` whole, replacing what was there.

    Args:
      target: the file to write.
      command: the compiler, which may be one for another machine; None looks for one.
      machine: the architecture it compiles for; None is this one's.

    Raises:
      BuildError: no compiler, or what the compiler says.
    """
    cc = list(compiler() if command is None else command)
    name = platform.machine() if machine is None else machine
    sets = INSTRUCTION_SETS.get({"arm64": "aarch64", "AMD64": "x86_64"}.get(name, name), {"C": ()})
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the last step is a rename: nobody ever opens half a library.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        digest = f'-DLB_SOURCE_DIGEST="{source_digest()}"'
        jobs: list[tuple[Path, Path, tuple[str, ...]]] = [
            *((SOURCES / source, Path(folder, f"{source}.o"), (digest,)) for source in SHARED),
            *((SOURCES / "ops.c", Path(folder, f"{s}.o"), (f"-DLB_ISA_{s}", *flags)) for s, flags in sets.items()),
        ]
        run_all([[*cc, *FLAGS, *flags, "-c", str(source), "-o", str(to)] for source, to, flags in jobs])
        library = Path(folder, LIBRARY)
        run_all([[*cc, "-shared", "-pthread", *(str(to) for _, to, _ in jobs), "-lm", "-o", str(library)]])
        library.replace(target)


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Runs compilers side by side.

    Raises:
      BuildError: one that cannot be run, or what it says when it fails.
    """
    running = []
    for command in commands:
        try:
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        except OSError as error:
            raise BuildError(f"{command[0]} cannot be run: {error}") from error
    said = [process.communicate()[0] for process in running]
    for process, output, command in zip(running, said, commands, strict=True):
        if process.returncode:
            raise BuildError(f"{shlex.join(command)} failed:\n{output}")
