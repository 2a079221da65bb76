"""Where a result comes from: code, seed, libraries, devices."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from lowbit.version import __version__

COMMIT = "LOWBIT_COMMIT"
"""Environment variable that names the commit where the code runs outside of its checkout, as in a container."""


def provenance(seed: int) -> dict[str, Any]:
    """Returns what a record needs so that its numbers can be made again."""
    return {
        "git_commit": git_commit(),
        "lowbit_version": __version__,
        "jax_version": jax.__version__,
        "python_version": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """Returns the commit of the code that runs, "+changes" after it if files differ.

    Outside of its own checkout it is what the environment says in `LOWBIT_COMMIT`, or None. A package installed below
    another repository (in its virtual environment) is none of that one's commits.
    """
    here = Path(__file__).resolve().parents[1]
    try:
        if Path(_git(here, "rev-parse", "--show-toplevel")).resolve() != here.parent:
            return os.environ.get(COMMIT)
        commit = _git(here, "rev-parse", "HEAD")
        changes = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT)
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
