"""Where numbers go: a line of JSON, TensorBoard, the progress bar."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from lowbit.atomic import write_atomically
from lowbit.errors import ConfigError
from lowbit.strict_json import finite
from lowbit.train.run_folder import RunFolder


class JsonLines:
    """A file of one JSON object a line, that a resumed run goes on with.

    Args:
      path: the file; made if absent.
      after: lines of later steps are dropped, as the resumed run writes them again, and so is what cannot be read: a
        last line that was cut off, or one that a power cut left full of NULs.
      writes: whether this process is the one that writes; the others only read.

    Attributes:
      keys: (step, text) of each row; text is None where a row has no such key. Of rows with the same, the last counts.
    """

    def __init__(self, path: Path, after: int, writes: bool = True):
        kept = {key: line for key, line in _rows(path) if key[0] <= after}
        self.keys = frozenset(kept)
        self._file = None
        if writes:
            write_atomically(path, b"".join(kept.values()))
            self._file = path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row, and hands it to the system at once: a killed run loses none."""
        if self._file is not None:
            self._file.write(json.dumps(finite(row), allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _rows(path: Path) -> Iterator[tuple[tuple[int, str | None], bytes]]:
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int):
            yield (row["step"], row.get("text")), line


class Meter:
    """Tokens per second between two points of the run, compilation and pauses left out."""

    def __init__(self) -> None:
        self._tokens = self._mark = 0
        self._since = time.monotonic()
        self._timed_tokens = 0
        self._timed_seconds = 0.0

    def restart(self, tokens: int) -> None:
        """Starts an interval after `tokens` tokens."""
        self._mark, self._since = tokens, time.monotonic()

    def interval(self, tokens: int) -> float:
        """Ends an interval at `tokens` tokens, starts the next, and returns tokens per second."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        done = tokens - self._mark
        self._timed_tokens += done
        self._timed_seconds += seconds
        self.restart(tokens)
        return done / seconds

    @property
    def overall(self) -> float | None:
        """Tokens per second over all intervals; None before the first."""
        return self._timed_tokens / self._timed_seconds if self._timed_seconds else None


class Log:
    """All outlets of one run, opened together and closed together; of several processes one `writes`."""

    def __init__(
        self, folder: RunFolder, *, start: int, steps: int, progress: bool, tensorboard: bool, writes: bool = True
    ):
        self._writer = _summary_writer(folder.path / "tensorboard", start) if tensorboard and writes else None
        self._metrics = JsonLines(folder.metrics, start, writes)
        # The evaluation at the end is made by whoever writes the result: a run resumed there makes it again.
        self._evaluations = JsonLines(folder.evaluations, min(start, steps - 1), writes)
        self._speed = ""  # the last one measured
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc=folder.path.name,
            disable=not (progress and writes),
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:  # a full disk makes closing fail as well, and one must not skip the next
            if self._writer is not None:
                stack.callback(self._writer.close)
            stack.callback(self._evaluations.close)
            stack.callback(self._metrics.close)
            self._bar.close()

    def training(self, row: Mapping[str, Any]) -> None:
        """Logs one line of training: step, tokens, loss, lr, grad_norm, param_norm, tokens_per_s, elapsed."""
        self._metrics.write(row)
        self._scalars("train", row)
        if row["tokens_per_s"] is not None:
            self._speed = f", {row['tokens_per_s']:,.0f} tokens/s"
        self._bar.set_postfix_str(f"loss {row['loss']:.3f}{self._speed}", refresh=False)
        self._bar.update(row["step"] - self._bar.n)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Logs one text's evaluation: step, text, nll, perplexity, bits_per_byte and what they are over."""
        self._evaluations.write(row)
        self._scalars(f"valid/{row['text']}", row)
        if not self._bar.disable:
            self._bar.write(f"step {row['step']}: {row['text']} {row['nll']:.4f} nats/token")

    def evaluated(self, step: int) -> set[str]:
        """Returns the texts that had been evaluated after `step` steps when the log was opened."""
        return {text for at, text in self._evaluations.keys if at == step and text is not None}

    def _scalars(self, group: str, row: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(f"{group}/{name}", value, row["step"])


def _summary_writer(path: Path, start: int) -> Any:
    # Only who asks for TensorBoard needs the package.
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "log.tensorboard needs the package tensorboardX", "pip install tensorboardX, or set log.tensorboard=false"
        ) from error
    return SummaryWriter(os.fspath(path), purge_step=start + 1)
