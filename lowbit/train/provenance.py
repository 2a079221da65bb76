"""Where a result comes from: code, seed, libraries, devices."""

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from lowbit.version import __version__


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
    """Returns the commit of the code that runs, "+changes" after it if files differ; None outside of its own checkout.

    A package installed below another repository (in its virtual environment) is none of that one's commits.
    """
    here = Path(__file__).resolve().parents[1]
    try:
        if Path(_git(here, "rev-parse", "--show-toplevel")).resolve() != here.parent:
            return None
        commit = _git(here, "rev-parse", "HEAD")
        changes = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
