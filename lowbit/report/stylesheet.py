"""The page's style sheet: one column of text, system fonts, and the theme's colours in light and dark."""

from lowbit.report import theme


def stylesheet() -> str:
    """Returns the CSS of the page, with one variable for each colour of the theme."""
    light = " ".join(f"--{colour.role}: {colour.light};" for colour in theme.COLOURS)
    dark = " ".join(f"--{colour.role}: {colour.dark};" for colour in theme.COLOURS)
    font = ", ".join(["system-ui", "-apple-system", "'Segoe UI'", "Inter", "Roboto", "Helvetica", "Arial"])
    return f"""
:root {{ color-scheme: light dark; --font: {font}, sans-serif; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
{_RULES}"""


_RULES = """
* { box-sizing: border-box; }
html { background: var(--paper); }
body {
  margin: 0 auto; padding: 4rem 1.5rem 5rem; max-width: 66rem;
  font: 1rem/1.6 var(--font); color: var(--ink); -webkit-font-smoothing: antialiased;
}
header { margin-bottom: 2.75rem; }
h1 { font-size: clamp(1.9rem, 4.5vw, 2.7rem); line-height: 1.15; letter-spacing: -.022em;
  margin: 0 0 .9rem; text-wrap: balance; }
h2 { font-size: 1.3rem; letter-spacing: -.012em; margin: 4rem 0 .35rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
.eyebrow { color: var(--muted); font-size: .85rem; margin: 0 0 .8rem; }
.lede { font-size: 1.15rem; }
.note { color: var(--muted); }
a { color: var(--blue); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0 2rem; margin: 2.2rem 0 0; }
.facts div { border-top: 2px solid var(--ink); padding: .7rem 0 1rem; }
.facts dt { color: var(--muted); font-size: .88rem; line-height: 1.4; }
.facts dd { margin: 0; font-size: 1.75rem; font-weight: 650; letter-spacing: -.02em; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
figure { margin: 1.2rem 0 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 42rem; height: auto; }
figure svg text { font-family: var(--font); }
.scroll { overflow-x: auto; margin-top: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 500; text-align: left; vertical-align: bottom; line-height: 1.3; }
th, td { padding: .42rem .75rem; border-bottom: 1px solid var(--hairline); }
td { white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; }
tr.first td { border-top: 1.5px solid var(--muted); }
td.method { font-weight: 600; }
.swatch { display: inline-block; width: .6em; height: .6em; border-radius: 50%; margin-right: .55em; }
.bar { display: inline-block; width: 7rem; height: .55em; vertical-align: middle; }
.bar i { display: block; height: 100%; border-radius: 1px; min-width: 1px; }
.wrong { color: var(--vermillion); font-weight: 700; }
.samples { margin-top: 1.2rem; }
.width { border-top: 1px solid var(--hairline); padding: 1.3rem 0 .6rem; display: grid; gap: .4rem 2.2rem;
  grid-template-columns: 5.5rem 1fr; }
.width h3 { font-size: 1rem; margin: 0; }
.width .texts { display: grid; gap: 1.2rem 2.2rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
blockquote { margin: 0 0 .8rem; font-family: Charter, 'Iowan Old Style', Georgia, 'Liberation Serif', serif; }
blockquote p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote footer { font: 600 .82rem/1.5 var(--font); margin-bottom: .15rem; }
pre { border: 1px solid var(--hairline); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; }
code { font: .9rem/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace; }
dl.machine { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.6rem; margin: 1.2rem 0; }
dl.machine dt { color: var(--muted); }
dl.machine dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .width { grid-template-columns: 1fr; } body { padding-top: 2rem; } }
@media print { body { max-width: none; padding: 0; } figure, .width, tr { break-inside: avoid; } }
"""
