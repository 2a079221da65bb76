"""The checkpoints of a run by their steps: which there are, and one that is not the newest."""

import tempfile
from pathlib import Path

from lowbit.errors import CheckpointError
from lowbit.train import load_trained
from lowbit.train.run_folder import RunFolder
from lowbit.train.trained import Trained


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of all finished checkpoints of a run, oldest first; none for a folder without checkpoints."""
    checkpoints = RunFolder(folder).checkpoints
    # Unfinished ones have a name with more than the step.
    return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdecimal()) if checkpoints.is_dir() else []


def load_step(folder: Path, step: int) -> Trained:
    """Reads the checkpoint of one step of a run.

    Raises:
      RunFolderError: no run folder.
      CheckpointError: it holds no checkpoint of this step, or an unreadable one.
    """
    steps = checkpoint_steps(folder)
    if step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{folder} has no checkpoint of step {step}", f"name a step that it has: {kept}")
    if step == steps[-1]:
        return load_trained(folder)
    # What is read of a run is its newest checkpoint. In this view of the folder, that is the wanted one.
    with tempfile.TemporaryDirectory(prefix="lowbit-step-") as name:
        view, run = RunFolder(Path(name)), RunFolder(folder.resolve())
        for part in ("config.json", "model"):
            (view.path / part).symlink_to(run.path / part)
        view.checkpoints.mkdir()
        (view.checkpoints / str(step)).symlink_to(run.checkpoints / str(step))
        try:
            return load_trained(view.path)
        except CheckpointError as error:  # which names the view
            raise CheckpointError(
                f"checkpoint {step} in {run.checkpoints} cannot be read", "name another run, or export again"
            ) from error
