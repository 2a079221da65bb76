"""Begins the dated record of a study: the sweep's JSON, a README with its table, and bars of the distances to float.

    python scripts/make_study_record.py configs/sweeps/distillation_losses.py runs/study_losses

writes experiments/DATE_distillation_losses, or the folder that -o names. The README asks the question of the sweep file
and states the results in the order of the first text; what they mean is for whoever looks at them to add. `make docs`
keeps the table current.
"""

import argparse
import ast
import shutil
import sys
from pathlib import Path

from lowbit.errors import LowbitError
from lowbit.report import theme
from lowbit.report.distances import distances, draw_distances
from lowbit.report.sweep import SweepResults, float_setting, read_sweep, sweep_table
from lowbit.report.table import fill_tables

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def write_record(sweep_file: Path, folder: Path, record: Path) -> None:
    """Writes a record that is not there yet.

    Args:
      sweep_file: whose docstring asks the question.
      folder: of the finished sweep.
      record: folder to make.

    Raises:
      DataError: the folder holds no sweep that is finished, or none with a float model among its points.
      FileExistsError: there is a record.
    """
    results = read_sweep(folder / "sweep.json")
    text = readme(question(sweep_file), results)
    record.mkdir(parents=True)
    shutil.copyfile(folder / "sweep.json", record / "sweep.json")
    (record / "README.md").write_text(text, encoding="utf-8")
    with theme.style():
        draw_distances(results).savefig(record / "distances.png", dpi=130)


def question(sweep_file: Path) -> str:
    """Returns the first line of the sweep file's docstring."""
    docstring = ast.get_docstring(ast.parse(sweep_file.read_text(encoding="utf-8")))
    return (docstring or sweep_file.stem).splitlines()[0]


def readme(title: str, results: SweepResults) -> str:
    """Returns the README of a study."""
    first = results.texts[0]
    above = sorted(distances(results).items(), key=lambda item: item[1][first])
    reference = float_setting(results)
    floors = "" if reference is None else " / ".join(f"{reference.mean(text):.3f}" for text in results.texts)
    lines = [f"- {name}: " + " / ".join(f"{value:+.3f}" for value in by_text.values()) for name, by_text in above]
    listed = "\n".join(lines)
    seconds = sum(point.seconds or 0.0 for point in results.points)
    text = f"""# {title}

Nats/token above the float model that was fine-tuned on the same tokens ({floors}), on {" / ".join(results.texts)}.
Differences below 0.02 are within what another order of the data does:

{listed}

<!-- table:points -->
<!-- /table -->

![distances to float](distances.png)

Command, on commit {(results.git_commit or "unknown")[:7]}: `{results.command}`.
{results.device}, {seconds:,.0f} seconds for {len(results.points)} points. `sweep.json` is what the table and the figure
are made of.
"""
    return fill_tables(text, {"points": sweep_table(results, "markdown")})


def main() -> int:
    """Writes the record that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep_file", type=Path, help="Python file with get_sweep")
    parser.add_argument("folder", type=Path, help="of the finished sweep")
    parser.add_argument("-o", "--output", type=Path, help="record to make (default: experiments/DATE_NAME)")
    options = parser.parse_args()
    try:
        date = read_sweep(options.folder / "sweep.json").date[:10]
        record = options.output or EXPERIMENTS / f"{date}_{options.sweep_file.stem}"
        write_record(options.sweep_file, options.folder, record)
    except (LowbitError, FileExistsError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    print(f"wrote {record}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
