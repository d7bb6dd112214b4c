"""Parse the command line into the options of a command; every mistake is one sentence with a suggestion."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from sfumato import registry
from sfumato.cli import audit_flags, options
from sfumato.cli.every import Help, Parser, with_every_command
from sfumato.cli.flags import Command
from sfumato.errors import SfumatoError, suggest
from sfumato.training.config import NAMING, TrainConfig, from_yaml

COMMANDS = options.COMMANDS | audit_flags.COMMANDS

_NUMBER = re.compile(r"-\.?\d|-(inf|nan)$")
_KINDS = {**NAMING, "solver": "solver"}  # --net names a network, and --net.depth is an argument of it


def parse(command: str, words: Sequence[str]) -> argparse.Namespace:
    """The options of `command`. `--help` prints and raises SystemExit(0); mistakes raise SfumatoError."""
    known = COMMANDS[command]
    words = [word if "." in word.partition("=")[0] else _dashed(word) for word in words]
    parser = _parser(command, known)
    arguments = [flag for flag in (word.partition("=")[0] for word in words) if _parts(flag, known)]
    for flag in arguments:
        if arguments.count(flag) > 1:
            raise SfumatoError(f"{flag} is given {arguments.count(flag)} times: give it once")
        parser.add_argument(flag, dest=flag, metavar="VALUE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_intermixed_args(words)
    _refuse(command, known, rest)
    if "config" in options:
        options = _with_config(options)
    for flag in arguments:
        name, key = _parts(flag, known)
        setattr(options, name, _called(getattr(options, name), name, key, flag, getattr(options, flag)))
    return options


def _dashed(word: str) -> str:
    """--sample_every as --sample-every."""
    return re.sub("^--[^=]+", lambda name: name[0].replace("_", "-"), word)


def _parts(flag: str, known: Command) -> tuple[str, ...]:
    """("net", "depth") for --net.depth; empty for any other word."""
    name, dot, key = flag.removeprefix("--").partition(".")
    takes = flag.startswith("--") and dot and name in _KINDS and any(f"--{name}" in each.names for each in known.flags)
    return (name, key.replace("-", "_")) if takes else ()


def _parser(command: str, known: Command) -> argparse.ArgumentParser:
    places = [flag.how for flag in known.flags if flag.group == "arguments"]
    forms = {None: "{}", "?": "[{}]", "*": "[{} ...]"}
    usage = " ".join(
        ["sfumato", command, "[FLAGS]", *(forms[how.get("nargs")].format(how["metavar"]) for how in places)]
    )
    parser = Parser(f"sfumato {command}", usage, known.about, formatter_class=Help, add_help=False, allow_abbrev=False)
    parser._negative_number_matcher = _NUMBER  # also accepts -1e-3
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(flag.group for flag in known.flags)}
    for flag in known.flags:
        groups[flag.group].add_argument(*flag.names, **flag.how)
    with_every_command(parser)
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return parser


def _refuse(command: str, known: Command, rest: Sequence[str]) -> None:
    """Raise SfumatoError for words that were not understood, flags first."""
    for word in rest:
        if word.startswith("-") and not _NUMBER.match(word):
            name = word.partition("=")[0]
            flags = ["--help", *(flag.names[-1] for flag in known.flags if flag.group != "arguments")]
            hint = suggest(name, flags).replace("'", "").rstrip(".")
            of_training = any(name in flag.names for flag in COMMANDS["train"].flags)
            if of_training and not get_close_matches(name, flags, cutoff=0.9):
                hint = f"a model has it from its training, `sfumato train {name}`"
            raise SfumatoError(f"`sfumato {command}` has no flag {name}: {hint} (sfumato {command} --help says more)")
    if rest:
        raise SfumatoError(f"`sfumato {command}` does not know what to do with {rest[0]!r}")


def _called(word: str | None, name: str, key: str, flag: str, text: str) -> str:
    """The value of --net with one more argument, in the form of settings: DiT(depth=8)."""
    if word is None:
        raise SfumatoError(f"{flag} is an argument of what --{name} names: give that, too")
    if registry.known(_KINDS[name], thing := registry.bare(word)):
        known = inspect.signature(registry.get(_KINDS[name], thing)).parameters
        flags = [f"--{name}.{each.replace('_', '-')}" for each in known]
        if key not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise SfumatoError(f"{thing} has no argument {flag}: {suggest(flag, flags) if flags else 'it takes none.'}")
    if not text:
        raise SfumatoError(f"{flag}= has no value: give one, or leave it out")
    inside = word.strip().removesuffix(")")
    mark = "(" if inside == word.strip() else "" if inside.endswith("(") else ", "
    value = f"({text})" if "," in text and text[0] not in "([" else text
    try:
        ast.parse(value, mode="eval")
    except (SyntaxError, ValueError):  # a name such as dpm++2m
        value = repr(text)
    return f"{inside}{mark}{key}={value})"


def _with_config(given: argparse.Namespace) -> argparse.Namespace:
    """The settings of a run: flags override the file named by --config, which overrides the defaults."""
    options = vars(given)
    if options["config"] == "":
        raise SfumatoError("--config names no file: give the path of a YAML file of settings")
    values = dataclasses.asdict(TrainConfig() if options["config"] is None else from_yaml(options["config"]))
    for name in ("conditions", "columns"):
        options[name] = {**values[name], **dict(options.get(name, []))}
    if "minutes" in options or "steps" in options:
        values["minutes"] = values["steps"] = None  # a budget on the command line replaces the file's
    return argparse.Namespace(**{**values, **options}, said=frozenset(options))


def chosen(options: Any, command: str = "train") -> dict[str, Any]:
    """The settings of a run that flags name, or that differ from the defaults."""
    usual, found = TrainConfig().to_dict(), train_config(options, command).to_dict()
    return {name: value for name, value in found.items() if name in options.said or value != usual[name]}


def train_config(options: Any, command: str = "train") -> TrainConfig:
    """The checked settings of a run from the options of `train` or `plan`."""
    if not options.data:
        raise SfumatoError(
            f"`sfumato {command}` needs DATA: a folder of images, a .npy, .npz, .tar, .parquet or .txt file, a "
            "built-in set"
        )
    return TrainConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)})
