"""Figures as SVG that lives inside a page: its text in the page's font, its colours those of the reader's theme."""

import io
import re

from matplotlib.figure import Figure

from lowbit.report import theme


def inline_svg(figure: Figure, label: str, name: str) -> str:
    """Renders a figure as an `<svg>` element for a page.

    Args:
      figure: drawn in the light colours of the theme.
      label: what the figure shows, for those who cannot see it.
      name: a word that is unique on the page; it keeps the ids of two figures apart.
    """
    buffer = io.StringIO()
    with theme.style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font(-family)?: ([^;\"]*?)'[^;\"]*", lambda m: _without_family(m.group(0)), svg)
    for colour in theme.COLOURS:
        svg = svg.replace(colour.light, f"var(--{colour.role})")
    # Width and height in points would fix the size; the view box alone lets the page decide.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[\d.]+pt"', "", head)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{escaped}">{rest.strip()}'


def _without_family(declaration: str) -> str:
    """Drops the font family from a CSS `font` or `font-family` declaration, so that the page's applies."""
    if declaration.startswith("font-family"):
        return "font-family: inherit"
    return declaration[: declaration.index("'")] + "var(--font)"
