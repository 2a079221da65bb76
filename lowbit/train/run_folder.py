"""The folder of one run: what lies in it, and who may write to it.

config.json          the config, as it ran
model/               config.json and tokenizer files: what the weights mean
checkpoints/<step>/  see `lowbit.train.checkpoints`
metrics.jsonl        one line a log point
evaluations.jsonl    one line a text and evaluation
recorder.jsonl       one line a record of `lowbit.train.recorder`
coresets/<step>.npy  the windows that were chosen after so many steps, where a run reads a part of them
broken/              see `lowbit.train.broken`: of a run that a NaN stopped
result.json          written last: a folder without it is a run that did not finish
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.atomic import write_atomically
from lowbit.config import ConfigDict, from_json, to_json
from lowbit.errors import RunFolderError
from lowbit.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside of a run's folder, and the files whose form belongs to nobody else."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, one line a log point."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON object a line, one line a text and evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def recorder(self) -> Path:
        """One JSON object a line, one line a recorded step."""
        return self.path / "recorder.jsonl"

    @property
    def broken(self) -> Path:
        """Where the step is kept that was not finite, if one was."""
        return self.path / "broken"

    @property
    def result(self) -> Path:
        """What the run came to."""
        return self.path / "result.json"

    def check(self, resume: bool) -> None:
        """Refuses to mix two runs, and to continue none.

        Raises:
          RunFolderError: no name; the folder exists and this is no resumption, or holds no unfinished run and it is.
        """
        if not self.path.name:
            raise RunFolderError("run_folder is not set", "set --config.run_folder=runs/NAME")
        exists, is_run = self.path.exists(), (self.path / "config.json").is_file()
        if resume and not is_run:
            first = "remove the folder and " if exists else ""
            raise RunFolderError(f"{self.path} holds no run to resume", f"{first}start without resuming")
        if resume and self.result.is_file():
            raise RunFolderError(f"the run in {self.path} is finished", "read its result.json, or start another run")
        if not resume and exists:
            raise RunFolderError(
                f"run folder {self.path} exists" + ("" if is_run else ", and holds no run"),
                ("resume the run, " if is_run else "") + "remove the folder, or choose another run_folder",
            )

    def create(self, config: ConfigDict, cfg: LlamaConfig, tokenizer_files: Mapping[str, bytes]) -> None:
        """Makes the folder with what the run is; it appears whole, as a run that can be resumed, or not at all.

        Raises:
          RunFolderError: it cannot be written.
        """
        text = to_json(config)
        partial: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
            (partial / "model").mkdir()
            write_atomically(partial / "model" / "config.json", json.dumps(cfg.to_hf(), indent=2).encode())
            for name, content in tokenizer_files.items():
                write_atomically(partial / "model" / name, content)
            write_atomically(partial / "config.json", text.encode())
            partial.chmod(0o755)  # mkdtemp makes it private
            partial.rename(self.path)
        except OSError as error:
            raise RunFolderError(f"run folder {self.path} cannot be written: {error}", "choose another") from error
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)

    def read(self) -> tuple[ConfigDict, LlamaConfig, dict[str, bytes]]:
        """Returns what `create` was given.

        Raises:
          RunFolderError: this is no run folder.
          ConfigError: its config is of another version.
        """
        place = self.path / "config.json"
        try:
            text = place.read_text()
            files = {file.name: file.read_bytes() for file in sorted((self.path / "model").iterdir())}
            architecture = json.loads(files.pop("config.json"))
        except (OSError, KeyError, ValueError) as error:
            raise RunFolderError(
                f"{self.path} is no run folder ({error})", "name a folder that training made"
            ) from error
        return from_json(text, str(place)), LlamaConfig.from_hf(architecture), files

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json; raises ValueError for a number that JSON has not."""
        write_atomically(self.result, json.dumps(result, indent=2, sort_keys=True, allow_nan=False).encode())
