"""A sweep from beginning to end: everything is checked, then trained, and recorded point by point."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from lowbit.errors import ConfigError, LowbitError, NonFiniteError, RunFolderError
from lowbit.locks import check_free, sole_writer
from lowbit.sweep.folder import SweepFolder
from lowbit.sweep.points import Point, make_points
from lowbit.sweep.programs import Group, make_groups
from lowbit.sweep.spec import Sweep
from lowbit.sweep.training import Program, train_batch
from lowbit.train import prepare, run
from lowbit.train.adapters import model_rules
from lowbit.train.run_folder import RunFolder
from lowbit.tree import resolve


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
) -> bool:
    """Trains the points of a sweep that are not finished, and writes sweep.json.

    A point whose numbers break is recorded with its error, and the others go on. Killed at any moment, the sweep goes
    on where it was with `resume`: finished points are skipped, a run of its own goes on from its checkpoint, and
    points that are trained side by side start anew.

    Args:
      sweep: what to run.
      folder: where everything lies; made unless this is a resumption.
      overrides: `key=value` for all points.
      resume: go on with the sweep in the folder. It may have got more points since.
      dry_run: check everything and say what would be trained, but train and write nothing.
      command: the command line, for the record.
      say: takes lines about what happens.

    Returns:
      Whether it came to its end: False if SIGTERM stopped a run, which `resume` goes on with.

    Raises:
      LowbitError: anything wrong with a point, the data or the folder, before any work.
      LockedError: another process is training in the folder.
    """
    if jax.process_count() > 1:
        raise ConfigError(f"a sweep over {jax.process_count()} processes", "run one sweep in each, in its own folder")
    place = SweepFolder(folder)
    points = make_points(sweep, folder, overrides)
    place.check(points, resume)
    if resume and not dry_run:
        check_free(folder)

    def unfinished() -> tuple[list[Group], list[int]]:
        groups = make_groups([point for point in points if place.record(point) is None], _at_once(sweep))
        return groups, [_check(group) for group in groups]

    groups, layers = unfinished()
    _announce(points, groups, say)
    if dry_run:
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made: {error.strerror}", "give another folder") from error

    def summarize() -> None:
        place.write_summary(points, sweep, overrides, command)

    with sole_writer(folder):
        if sum(len(group.points) for group in groups) != sum(place.record(point) is None for point in points):
            groups, layers = unfinished()  # another sweep ended since they were looked at
        return _train(place, groups, layers, summarize, say)


def _train(
    place: SweepFolder,
    groups: Sequence[Group],
    layers: Sequence[int],
    summarize: Callable[[], None],
    say: Callable[[str], None],
) -> bool:
    """Trains group after group; returns whether all came to their end."""
    summarize()
    for group, depth in zip(groups, layers, strict=True):
        program = Program(group.points, depth) if group.at_once else None
        for batch in group.batches:
            if program is None:
                (point,) = batch
                finished, errors = _run_alone(point)
                if not finished:
                    say(f"{point.name} was stopped with a checkpoint; the same command with --resume goes on")
                    return False
            else:
                errors = train_batch(program, batch)
            for point, error in zip(batch, errors, strict=True):
                place.write_record(point, error, group.at_once and len(batch))
                say(f"{point.name}: {_outcome(place, point)}")
            summarize()
    return True


def _at_once(sweep: Sweep) -> int:
    if sweep.points_at_once is not None:
        return sweep.points_at_once
    return 1 if jax.default_backend() == "cpu" else 8


def _check(group: Group) -> int:
    """Prepares the first point of a group, which is most of what can be wrong with any; returns the model's layers."""
    point = group.points[0]
    try:
        experiment = prepare(point.config)
        for point in group.points:  # what is left is the number of their widths
            resolve(model_rules(point.config), experiment.params)
    except LowbitError as error:
        raise type(error)(f"point {point.name}: {error.cause}", error.mend) from error
    return experiment.cfg.num_layers


def _announce(points: Sequence[Point], groups: Sequence[Group], say: Callable[[str], None]) -> None:
    left = sum(len(group.points) for group in groups)
    say(f"{len(points)} points, {len(points) - left} finished")
    for group in groups:
        if group.at_once == 0:
            say(f"  a run of its own: {group.points[0].name}")
            continue
        say(f"  one program for {len(group.points)} points, {group.at_once} at once:")
        for batch in group.batches:
            say(f"    {'  '.join(point.name for point in batch)}")


def _run_alone(point: Point) -> tuple[bool, list[str | None]]:
    """Trains one point as `lowbit train` does, from its checkpoint where there is one; (finished, [error])."""
    folder = RunFolder(Path(point.config.run_folder))
    if folder.result.is_file():  # killed between the run's end and its record
        return True, [None]
    begun = (folder.path / "config.json").is_file()
    if not begun:
        shutil.rmtree(folder.path, ignore_errors=True)
    try:
        return run(point.config, resume=begun).finished, [None]
    except NonFiniteError as error:
        return True, [error.cause]


def _outcome(place: SweepFolder, point: Point) -> str:
    record = place.record(point)
    assert record is not None
    if record["error"] is not None:
        return f"failed at {record['error']}"
    return ", ".join(f"{text} {found['nll']:.4f} nats/token" for text, found in record["evaluations"].items())
