"""Jobs with several commands: the first words of a command line choose the settings that the rest is parsed into."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.base import Settings
from alpaca_ray.settings.cli import Parser, formatter, parse_settings

S = TypeVar("S", bound=Settings)


def parse_command(
    commands: Mapping[str, tuple[type[S], str]], argv: Sequence[str] | None = None, *, description: str
) -> S:
    """Parse a command line that begins with a command into that command's settings. ``--help`` prints and exits.

    Args:
        commands: the words of each command (``diff make``), its settings and its description.

    Raises:
        SettingsError: there is no such command; or as ``parse_settings``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0]).name
    for command, (cls, text) in commands.items():
        words = command.split()
        if arguments[: len(words)] == words:
            return parse_settings(cls, arguments[len(words) :], description=text, prog=f"{program} {command}")
    known = ", ".join(commands)
    if arguments and arguments[0] in ("-h", "--help"):
        parser = Parser(
            prog=program, usage="%(prog)s COMMAND [flags]", description=description, formatter_class=formatter
        )
        group = parser.add_argument_group("commands (each takes --help)")
        for command, (_, text) in commands.items():
            group.add_argument(command, help=text.replace("%", "%%"))
        parser.parse_args(["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise SettingsError(f"give a command first: {known} (see --help)")
    raise SettingsError(f"unknown command {' '.join(arguments[:2])!r}: give one of {known}")
