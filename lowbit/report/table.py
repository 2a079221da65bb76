"""Results as a text table, for the terminal and for the README."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

from lowbit.errors import DataError, nearest
from lowbit.report.results import Row


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, how a row fills it, and whether it holds numbers (then aligned right)."""

    heading: str
    cell: Callable[[Row], str]
    numeric: bool = True


def format_bytes(count: int) -> str:
    """Formats a size in decimal megabytes: `12.3 MB`; below one, in kilobytes."""
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:,.1f} kB"


def format_seconds(seconds: float) -> str:
    """Formats a duration: `0.4 s`, `38 s`, `2 min 05 s`, `1 h 02 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_perplexity(perplexity: float) -> str:
    """Formats a perplexity with at most one decimal: rounding below 2 bits can reach many thousands."""
    return f"{perplexity:,.1f}" if perplexity < 1000 else f"{perplexity:,.0f}"


def format_verified(verified: bool | None) -> str:
    """Formats whether packed file and trained model are equal: `yes`, `NO`, or a dash for no file."""
    return {True: "yes", False: "NO", None: "–"}[verified]


COLUMNS: tuple[Column, ...] = (
    Column("method", lambda row: row.method, numeric=False),
    Column("bits", lambda row: f"{row.bits:g}"),
    Column("nats/token", lambda row: f"{row.nll:.3f}"),
    Column("perplexity", lambda row: format_perplexity(row.perplexity)),
    Column("bits/byte", lambda row: f"{row.bits_per_byte:.3f}"),
    Column("bits/weight", lambda row: f"{row.bits_per_weight:.2f}"),
    Column("whole model", lambda row: f"{row.bits_per_weight_model:.2f}"),
    Column("file", lambda row: format_bytes(row.bytes)),
    Column("time", lambda row: format_seconds(row.seconds)),
    Column("verified", lambda row: format_verified(row.verified), numeric=False),
)


def results_table(rows: Sequence[Row], form: Literal["markdown", "plain"], columns: Sequence[Column] = COLUMNS) -> str:
    """Lays rows out as a table with aligned columns, without a closing newline.

    Args:
      rows: one line each, in the order given.
      form: "markdown" for GitHub's tables, "plain" for a terminal.
      columns: which columns, from left to right.
    """
    cells = [[column.cell(row) for column in columns] for row in rows]
    return lay_out([column.heading for column in columns], [column.numeric for column in columns], cells, form)


def lay_out(
    headings: Sequence[str],
    numeric: Sequence[bool],
    cells: Sequence[Sequence[str]],
    form: Literal["markdown", "plain"],
) -> str:
    """Lays words out as a table with aligned columns, without a closing newline.

    Args:
      headings: of each column.
      numeric: whether a column holds numbers (then it is aligned right).
      cells: one sequence a line.
      form: see `results_table`.
    """
    escaped = [[word.replace("|", "\\|") for word in line] for line in cells]
    widths = [max(len(heading), *(len(line[i]) for line in escaped), 3) for i, heading in enumerate(headings)]

    def line(words: Sequence[str], separator: str) -> str:
        padded = (
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(words, widths, numeric, strict=True)
        )
        return separator.join(padded)

    if form == "plain":
        rule = "  ".join("─" * width for width in widths)
        return "\n".join([line(headings, "  "), rule, *(line(words, "  ") for words in escaped)])
    dashes = ["-" * (w - 1) + (":" if right else "-") for w, right in zip(widths, numeric, strict=True)]
    lines = [line(headings, " | "), " | ".join(dashes), *(line(words, " | ") for words in escaped)]
    return "\n".join(f"| {text} |" for text in lines)


_MARKED = re.compile(r"(<!-- table:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /table -->)", re.DOTALL)


def table_names(text: str) -> list[str]:
    """Lists the names of the tables that a document asks for with `<!-- table:NAME -->`."""
    return [match["name"] for match in _MARKED.finditer(text)]


def fill_tables(text: str, tables: dict[str, str]) -> str:
    """Replaces what stands between `<!-- table:NAME -->` and `<!-- /table -->` by the table of that name.

    Raises:
      DataError: the text asks for a table that is not there, or an opening marker has no closing one.
    """
    opened = text.count("<!-- table:")
    if opened != len(_MARKED.findall(text)):
        raise DataError("a `<!-- table:NAME -->` has no `<!-- /table -->` after it", "close every table")

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise DataError(f"there is no table named {match['name']!r}", nearest(match["name"], tables))
        return f"{match[1]}\n{tables[match['name']]}\n\n{match[4]}"

    return _MARKED.sub(replaced, text)
