"""Lets atheris, whose cases follow the coverage, look for files that break a reader.

    python scripts/fuzz_atheris.py packed -runs=1000000 -max_total_time=300

Needs an interpreter with numpy and atheris (`pip install atheris`), and this repository on PYTHONPATH. Arguments after
the target go to libFuzzer; it ends with the case in a file where a reader raises anything but its own error.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lowbit"]):
    import fuzz_reader

    from lowbit.errors import LowbitError


def main() -> None:
    """Starts from the sound file of a target and never returns."""
    target = sys.argv.pop(1)
    make, use = fuzz_reader.TARGETS[target]
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "sound").write_bytes(make())
    path = folder / "case.gguf"

    def one(raw: bytes) -> None:
        for content in {raw, fuzz_reader.signed(raw)} if target == "packed" else {raw}:
            path.write_bytes(content)
            try:
                use(path)
            except LowbitError:
                continue

    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
