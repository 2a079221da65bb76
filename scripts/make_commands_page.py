"""Writes docs/commands.md from the commands' own descriptions, so that the page says what `--help` says."""

import sys
from pathlib import Path

from lowbit.cli.command import Argument, Command
from lowbit.cli.commands import COMMANDS, PROGRAM

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"

INTRODUCTION = f"""# Commands

`{PROGRAM} COMMAND --help` says the same in the terminal; after an installation `lowbit COMMAND` does too. This page is
written by `scripts/make_commands_page.py`.

A mistake is answered by one line that names its cause and one that says what to do, on stderr, with exit status 2.
Other statuses: 0 done, 1 `verify` found another model or `estimate` a run that does not fit, 130 stopped by Ctrl-C,
141 the reader of the output left, 143 `train` was stopped by SIGTERM and left a checkpoint. Outputs appear whole or not
at all.

`inspect`, `generate` and `eval` with the numpy backend never load jax.
"""


def section(command: Command) -> str:
    """Returns one command: what it does, examples, arguments."""
    examples = "\n".join(f"    {PROGRAM} {example}" for example in command.examples)
    rows = "\n".join(f"| {spelling(argument)} | {cell(argument.help)} |" for argument in command.arguments)
    return f"""## {command.name}

{command.summary[0].upper()}{command.summary[1:]}. {command.description}

{examples}

| argument | meaning |
| --- | --- |
{rows}
"""


def spelling(argument: Argument) -> str:
    """Returns how an argument is written, with a placeholder for its value."""
    if not argument.is_flag:
        return f"`{argument.options['metavar']}`"
    choices = argument.options.get("choices")
    value = "|".join(choices) if choices else argument.options.get("metavar", "")
    more = " ..." if argument.options.get("nargs") == "+" else ""
    required = ", required" if argument.options.get("required") else ""
    return f"`{cell(', '.join(argument.names) + (f' {value}' if value else '') + more)}`{required}"


def cell(text: str) -> str:
    """Escapes what would end a cell of the table."""
    return text.replace("|", r"\|")


def page() -> str:
    """Returns docs/commands.md as the code has it now."""
    overview = "\n".join(f"| [{name}](#{name}) | {command.summary} |" for name, command in COMMANDS.items())
    contents = f"| command | |\n| --- | --- |\n{overview}\n"
    return "\n".join([INTRODUCTION, contents, *(section(command) for command in COMMANDS.values())])


def main() -> None:
    """Rewrites the page where it is out of date."""
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        PAGE.write_text(page(), encoding="utf-8")
        print("wrote docs/commands.md", file=sys.stderr)


if __name__ == "__main__":
    main()
