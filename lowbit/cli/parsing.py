"""From an argument list to a command and its values; every mistake becomes a `UsageError`."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from lowbit.cli.command import Command
from lowbit.cli.commands import COMMANDS, PROGRAM
from lowbit.cli.usage import UsageError
from lowbit.errors import nearest

_OVERRIDE = "--config."


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"write {self.usage}, or see --help")


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Returns the command that an argument list names and the values of its arguments.

    Raises:
      UsageError: an unknown command or flag (the message names the nearest), a value that is missing, superfluous or of
        another type.
      SystemExit: `--help`, after it was printed.
    """
    name, *rest = argv
    if name not in COMMANDS:
        kind = "flag" if name.startswith("-") else "command"
        raise UsageError(f"unknown {kind} {name!r}", nearest(name, [*COMMANDS, "--help", "--version"]))
    command = COMMANDS[name]
    rest = [_joined(token) for token in rest] if "--config" in command.flags else rest
    _check_flags(command, rest)
    return command, make_parser(command).parse_args(rest)


def make_parser(command: Command) -> argparse.ArgumentParser:
    """Returns the command's own parser."""
    examples = "\n".join(f"  {PROGRAM} {example}" for example in command.examples)
    parser = _Parser(
        prog=f"{PROGRAM} {command.name}",
        usage=_usage(command),
        description=textwrap.fill(command.description, shutil.get_terminal_size().columns - 2),
        epilog=f"example{'s' if len(command.examples) > 1 else ''}:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # leaves the examples' lines whole
        allow_abbrev=False,  # a shortened flag today is an ambiguous one tomorrow
    )
    for argument in command.arguments:
        parser.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **argument.options)
    return parser


def _usage(command: Command) -> str:
    """Positionals first: after a flag that takes several values they would be taken for one of them."""
    parts = [str(a.options["metavar"]) for a in command.arguments if not a.is_flag]
    for argument in command.arguments:
        if argument.is_flag and argument.options.get("required", False):
            parts.append(
                f"{argument.names[0]} {argument.options['metavar']}" + (" ..." if "nargs" in argument.options else "")
            )
    return " ".join([PROGRAM, command.name, *parts, "[flags]"])


def _joined(token: str) -> str:
    """`--config.a.b=v` is how configs are overridden elsewhere; argparse needs `--config=a.b=v`."""
    if not token.startswith(_OVERRIDE):
        return token
    if "=" not in token:
        raise UsageError(f"override {token!r} sets nothing", f"write {token}=VALUE, without a space")
    return f"--config={token.removeprefix(_OVERRIDE)}"


def _check_flags(command: Command, tokens: Sequence[str]) -> None:
    """Finds misspelt flags first: argparse would rather complain of what they leave missing."""
    for token in tokens:
        flag = token.partition("=")[0]
        if flag == "--":
            return
        # With a space inside it is a value, as argparse has it.
        if flag.startswith("--") and " " not in token and flag not in command.flags:
            raise UsageError(
                f"{command.name} has no flag {flag!r}", nearest(flag, [f for f in command.flags if f.startswith("--")])
            )
