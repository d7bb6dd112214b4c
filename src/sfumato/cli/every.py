"""The flags of every command, accepted before and after its name, and the parser of all flags."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from sfumato.errors import SfumatoError


class Help(argparse.HelpFormatter):
    """argparse's layout, but without line breaks at hyphens, as in ddpm-beta."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(self._split_lines(text, width))


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises SfumatoError where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise SfumatoError(f"{message} (see {self.prog} --help)")


def with_every_command(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command, which are also accepted before its name."""
    group = parser.add_argument_group("with every command")
    group.add_argument(
        "--modules", metavar="FILE", default="",
        help="Your own Python files to run first, separated by commas: parts that they register (docs/extending.md) "
        "can be named.",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="Print results as JSON on stdout, and notes on stderr.")
    group.add_argument("--debug", action="store_true", help="Show a traceback if something fails.")


def split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the flags of every command, the remaining words: a command and its arguments)."""
    for word in words:
        if word.startswith("--") and word.endswith("=--"):  # argparse would make it an empty list
            raise SfumatoError(f"{word} has no value: give one, or leave it out")
    parser = Parser("sfumato", add_help=False, allow_abbrev=False)
    with_every_command(parser)
    return parser.parse_known_args(words)
