"""The folder of a sweep: what is known of each point, and the one file that table and figures are made of.

points/NAME/             the run folder of a point, see `lowbit.train.run_folder`
points/NAME/point.json   written last and whole: a point without it is not finished
sweep.json               all finished points, written anew after each batch
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.atomic import write_atomically
from lowbit.config import differences, from_json
from lowbit.errors import RunFolderError
from lowbit.sweep.points import Point
from lowbit.sweep.spec import Sweep
from lowbit.train.provenance import provenance
from lowbit.train.run_folder import RunFolder

FROM_RESULT = (
    "evaluations",
    "bits_per_weight",
    "bits_per_weight_model",
    "tokens",
    "seconds",
    "git_commit",
    "device",
    "jax_version",
    "date",
)
"""What a point's record takes from the result.json of its run; None for a point that failed."""


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """Paths inside of a sweep's folder, and who may write there."""

    path: Path

    @property
    def summary(self) -> Path:
        """What the sweep came to so far."""
        return self.path / "sweep.json"

    def check(self, points: Sequence[Point], resume: bool) -> None:
        """Refuses to mix two sweeps; more points, and fewer, are no other sweep.

        Raises:
          RunFolderError: the folder exists and this is no resumption, or does not and it is; or a point in it was begun
            with another config.
        """
        if resume and not self.path.is_dir():
            raise RunFolderError(f"{self.path} holds no sweep to resume", "start it without --resume")
        if not resume and self.path.exists():
            raise RunFolderError(f"sweep folder {self.path} exists", "go on with --resume, or choose another with -o")
        for point in points:
            begun = RunFolder(Path(point.config.run_folder)).path / "config.json"
            if not begun.is_file():
                continue
            unlike = differences(point.config, from_json(begun.read_text(), str(begun)))
            # The folder may have been moved, and how a run is shown decides nothing.
            unlike = [key for key in unlike if key != "run_folder" and not key.startswith("log.")]
            if unlike:
                raise RunFolderError(
                    f"{begun.parent} was begun with another config: {', '.join(unlike)} differ",
                    "give the sweep that it was begun with, or choose another folder with -o",
                )

    def record(self, point: Point) -> dict[str, Any] | None:
        """Returns the record of a point that is finished, or None."""
        place = self._place(point)
        record: dict[str, Any] | None = json.loads(place.read_text()) if place.is_file() else None
        return record

    def write_record(self, point: Point, error: str | None, together: int) -> None:
        """Writes what became of a point, from its result.json or, if it failed, the error.

        Args:
          point: which.
          error: why it has no result.
          together: number of points that were trained as one program with it; 0 for a run of its own.
        """
        place = self._place(point)
        result: Mapping[str, Any] = {}
        if error is None:
            result = json.loads(RunFolder(place.parent).result.read_text())
        record = {"name": point.name, "settings": point.settings, "error": error, "together": together}
        record |= {key: None if error is not None else result[key] for key in FROM_RESULT}
        write_atomically(place, _as_json(record))

    def write_summary(self, points: Sequence[Point], sweep: Sweep, overrides: Sequence[str], command: str) -> None:
        """Writes sweep.json: where it comes from, and the records of the points that are finished."""
        records = [record for point in points if (record := self.record(point)) is not None]
        summary = {
            "base": sweep.base,
            "overrides": [*sweep.overrides, *overrides],
            "command": command,
            **provenance(points[0].config.seed),
            "count": len(points),
            "points": records,
        }
        write_atomically(self.summary, _as_json(summary))

    def _place(self, point: Point) -> Path:
        return Path(point.config.run_folder) / "point.json"


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
