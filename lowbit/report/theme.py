"""One set of colours and fonts for every figure and for the page, in a light and a dark form.

The hues of the series are those of Okabe and Ito (2008), which people with any of the common colour
deficiencies can tell apart; some are darkened or lightened for contrast with the paper.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

from lowbit.report.results import Row


@dataclasses.dataclass(frozen=True)
class Colour:
    """A role that a colour plays, with its value on light and on dark paper.

    Figures are drawn in the light values. On the page each becomes the CSS variable `--role`, which
    the reader's preference switches; the light values must therefore differ from one another.
    """

    role: str
    light: str
    dark: str


PAPER = Colour("paper", "#fffffe", "#14171b")
INK = Colour("ink", "#1b1e23", "#e8eaed")
MUTED = Colour("muted", "#646b75", "#9aa2ad")
HAIRLINE = Colour("hairline", "#dfe2e6", "#31373f")
BLUE = Colour("blue", "#0067a6", "#5cb8ec")
VERMILLION = Colour("vermillion", "#c84e00", "#ff9a5c")
GREEN = Colour("green", "#00805e", "#35c79c")
PURPLE = Colour("purple", "#a8487f", "#e59ac6")
AMBER = Colour("amber", "#946400", "#f0bb3f")
SLATE = Colour("slate", "#4d5561", "#b4bcc7")
CRIMSON = Colour("crimson", "#a3152e", "#ff8296")
TEAL = Colour("teal", "#1a7080", "#7fd6e0")

COLOURS = (PAPER, INK, MUTED, HAIRLINE, BLUE, VERMILLION, GREEN, PURPLE, AMBER, SLATE, CRIMSON, TEAL)
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, AMBER, SLATE, CRIMSON, TEAL)

FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")

_METHOD_MARKS = {"qat": (BLUE, "s"), "rtn": (VERMILLION, "o"), "rtn_mse": (AMBER, "^"), "float": (SLATE, "D")}
_SPARE_MARKS = ((GREEN, "P"), (PURPLE, "v"), (CRIMSON, "X"))
_METHOD_NAMES = {"qat": "trained (qat)", "rtn": "rounded (rtn)", "rtn_mse": "rounded, best scales", "float": "float"}


def methods(rows: list[Row]) -> list[str]:
    """Lists the methods of the rows in their order of appearance, each once."""
    return list(dict.fromkeys(row.method for row in rows))


def method_marks(names: list[str]) -> dict[str, tuple[Colour, str]]:
    """Gives each method a colour and a marker: fixed ones to the known, so that all figures agree."""
    spare = itertools.cycle(_SPARE_MARKS)
    return {name: _METHOD_MARKS[name] if name in _METHOD_MARKS else next(spare) for name in names}


def method_label(name: str) -> str:
    """Returns what figures call a method."""
    return _METHOD_NAMES.get(name, name)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sets matplotlib's defaults for the figures drawn inside: few lines, no box, readable type."""
    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": [font for font in FONTS if font in _installed_fonts()] or ["DejaVu Sans"],
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 14,
        "axes.labelsize": 11,
        "axes.labelpad": 8,
        "axes.edgecolor": HAIRLINE.light,
        "axes.linewidth": 1.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.labelcolor": MUTED.light,
        "axes.titlecolor": INK.light,
        "axes.facecolor": "none",
        "figure.facecolor": PAPER.light,
        "grid.color": HAIRLINE.light,
        "grid.linewidth": 0.8,
        "text.color": INK.light,
        "xtick.color": HAIRLINE.light,
        "xtick.labelcolor": MUTED.light,
        "ytick.color": MUTED.light,
        "xtick.major.size": 4,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "xtick.minor.bottom": False,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "savefig.dpi": 160,
        # Text stays text: the page's fonts, selectable, and small.
        "svg.fonttype": "none",
        "svg.hashsalt": "lowbit",
    }
    with mpl.rc_context(settings):
        yield


def _installed_fonts() -> set[str]:
    from matplotlib import font_manager

    return {font.name for font in font_manager.fontManager.ttflist}
