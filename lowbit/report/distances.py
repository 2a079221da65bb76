"""The figure of a study: how far each of its points is from the float model among them, on every text."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from lowbit.errors import DataError
from lowbit.report import theme
from lowbit.report.sweep import FLOAT, METHOD, Setting, SweepResults, float_setting, label, settings_of, show

NAME_WIDTH, NAME_LINES, LINE_INCHES = 38, 4, 0.19
"""Characters of a line of a setting's name in the figure, most of its lines, and the height of one."""


def distances(results: SweepResults) -> dict[str, dict[str, float]]:
    """Returns nats/token above the float model's, by the name of the setting and the text, in their order.

    The mean over seeds; a setting that failed is left out.

    Raises:
      DataError: no point is a float model, or it failed.
    """
    reference = float_setting(results)
    if reference is None or any(reference.mean(text) is None for text in results.texts):
        raise DataError(
            "no point of the sweep is a float model that was trained to its end",
            "add one to its points: quant.method=float",
        )
    found: dict[str, dict[str, float]] = {}
    quantized = [setting for setting in settings_of(results) if setting.values.get(METHOD) != FLOAT]
    for setting in quantized:
        means = {text: setting.mean(text) for text in results.texts}
        above = {text: mean - (reference.mean(text) or 0.0) for text, mean in means.items() if mean is not None}
        if above:
            found[name_of(setting, quantized)] = above
    return found


def name_of(setting: Setting, others: Sequence[Setting]) -> str:
    """Returns what tells a setting from others, itself among them, in words: not what all of them share."""
    shared = {
        key
        for key, value in setting.values.items()
        if len(others) > 1 and all(o.values.get(key) == value for o in others)
    }
    told = [
        show(value) if key == METHOD else label(key) if value is True else f"{label(key)} {show(value)}"
        for key, value in setting.values.items()
        if not (key in shared or value is None or value is False or value == "")
    ]
    return ", ".join(told) or "base"


def draw_distances(results: SweepResults) -> Figure:
    """Returns bars of `distances`, a colour for each text.

    Raises:
      DataError: as `distances`.
    """
    found = distances(results)
    reference = float_setting(results)
    with theme.style():
        names = [_in_lines(name) for name in found]
        room = (max(0.22 + 0.24 * len(results.texts), LINE_INCHES * (1 + name.count("\n"))) for name in names)
        height = 1.1 + sum(room)
        figure = Figure(figsize=(8.6, height), layout="constrained")
        axes = figure.subplots()
        thickness = 0.8 / len(results.texts)
        for i, (text, colour) in enumerate(zip(results.texts, theme.SERIES, strict=False)):
            floor = 0.0 if reference is None else reference.mean(text) or 0.0
            places = [row + (i + 0.5) * thickness - 0.4 for row in range(len(found))]
            lengths = [above.get(text, 0.0) for above in found.values()]
            name = f"{text} (float {floor:.3f})"
            axes.barh(places, lengths, 0.9 * thickness, color=colour.light, label=name)
            for place, length in zip(places, lengths, strict=True):
                axes.annotate(
                    f"{length:+.3f} ({floor + length:.3f})",
                    (max(length, 0.0), place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                    color=theme.MUTED.light,
                )
        axes.set_yticks(range(len(found)), names)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.2)
        axes.set_xlabel("nats per token above the float model trained on the same tokens (lower is better)")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(results.texts))
    return figure


def _in_lines(name: str) -> str:
    """A name that leaves room for bars; settings that change ten keys have one that would push them out."""
    return "\n".join(textwrap.wrap(name, NAME_WIDTH, max_lines=NAME_LINES, placeholder=" …"))
