"""The checkpoints of a run by their steps."""

from pathlib import Path

from lowbit.train.run_folder import RunFolder


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of all finished checkpoints of a run, oldest first; none for a folder without checkpoints."""
    checkpoints = RunFolder(folder).checkpoints
    # Unfinished ones have a name with more than the step.
    return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdecimal()) if checkpoints.is_dir() else []
