"""What every page is made of: the document, its sections, and a row of facts."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lowbit.report.stylesheet import stylesheet


def document(title: str, sections: Iterable[str]) -> str:
    """Returns a page that needs no other file; empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{stylesheet()}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def header(eyebrow: str, title: str, lede: str, facts: Sequence[tuple[str, str]]) -> str:
    """Returns the top of a page; `facts` are (value, what it is) pairs that stand out."""
    cells = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for value, what in facts)
    return (
        f'<header>\n<p class="eyebrow">{escape(eyebrow)}</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="lede">{escape(lede)}</p>\n<dl class="facts">{cells}</dl>\n</header>'
    )


def section(title: str, note: str, body: str) -> str:
    """Returns a section: its heading, a sentence or two in plain text, and a body that is HTML."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="note">{escape(note)}</p>\n{body}\n</section>'


def provenance(command: str, facts: Mapping[str, Any]) -> str:
    """Returns the section that says how a page came about."""
    items = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    body = f'<pre><code>{escape(command)}</code></pre>\n<dl class="machine">{items}</dl>'
    return section("How this was made", "The command, and the machine that it ran on.", body)
