"""Words of the command line -> the options of a command; every mistake is one sentence with a suggestion."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.cli.options import CLASSES, EVERY, PAIR, PLACES, REQUIRED, Flag, Several
from sfumato.errors import SfumatoError, suggest
from sfumato.training.config import NAMING, TrainConfig, from_yaml

_NAME = re.compile("^--[^=]+")
_NUMBER = re.compile(r"-\.?\d|-(inf|nan)$")


def parse(command: str, words: Sequence[str]) -> Any:
    """The options of `command`; `--help` prints and raises SystemExit(0), mistakes raise SfumatoError."""
    if "--" in words:  # what follows are places, which may begin with a dash
        places = words[words.index("--") + 1 :]
        words = [*words[: words.index("--")], *(f"./{word}" if word.startswith("-") else word for word in places)]
    words = [_NAME.sub(lambda name: name[0].replace("_", "-"), word) for word in words]
    known = CLASSES[command].flags()
    known |= _further(known, words)
    try:
        given = _given(command, known, words)
    except SfumatoError as error:
        raise SfumatoError(f"{error} (sfumato {command} --help says more)") from None
    given = _with_config(given)
    for name in [name for name in given if "." in name]:
        of, _, key = name.partition(".")
        given[of] = _called(of, given.get(of, known[of].usual), key.replace("-", "_"), given.pop(name))
    return CLASSES[command](**given)


def _further(known: Mapping[str, Flag], words: Sequence[str]) -> dict[str, Flag]:
    """Flags of words such as --net.depth: an argument of what --net names."""
    found = {}
    for word in words:
        name, dot, key = word.partition("=")[0].removeprefix("--").partition(".")
        if dot and name in known and name in (*NAMING, "solver"):
            found[f"{name}.{key}"] = Flag("", metavar="a value", name=f"{name}.{key}")
    return found


def _given(command: str, known: Mapping[str, Flag], words: Sequence[str]) -> dict[str, Any]:
    """Field -> value, of what is given."""
    try:
        found, rest = _parser(command, known).parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:  # too many values of a flag, or too few
        name = str(error.argument_name).split("/")[0]
        flag = next((one for one in known.values() if one.spellings[0] == name), None)
        takes = f"{name} takes no value" if flag is None else f"{flag} takes {flag.takes}"
        raise SfumatoError(f"{takes}: {error.message}") from None
    _refuse(command, known, rest)
    for name, flag in known.items():
        if flag.usual is REQUIRED and name not in found:
            raise SfumatoError(f"`sfumato {command}` needs {flag}")
    return {name: _read(known[name], value) for name, value in vars(found).items()}


class _Page(argparse.HelpFormatter):
    """Lines of at most 120 characters, paragraphs that stay apart, names that are not broken at their hyphens."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(120, shutil.get_terminal_size().columns))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join("\n".join(self._split_lines(part, width)) for part in text.split("\n\n"))


def _usage(command: str, known: Mapping[str, Flag]) -> str:
    words = f"sfumato {command} [FLAGS]"
    for flag in known.values():
        if flag.group == PLACES:
            form = f"{flag} ..." if flag.kind == Several else f"{flag}"
            words += f" {form}" if flag.usual is REQUIRED else f" [{form}]"
    return words


def _parser(command: str, known: Mapping[str, Flag]) -> argparse.ArgumentParser:
    """argparse for `command`; it only tells words apart, values stay text."""
    parser = argparse.ArgumentParser(
        usage=_usage(command, known), description=inspect.getdoc(CLASSES[command]),
        formatter_class=_Page, add_help=False, allow_abbrev=False, exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser._negative_number_matcher = _NUMBER  # -1e-3 is a number, too
    titles = sorted(dict.fromkeys(flag.group for flag in known.values()), key=EVERY.__eq__)  # which comes last
    groups = {title: parser.add_argument_group(title) for title in titles}
    for name, flag in known.items():
        how: dict[str, Any] = {"help": flag.help or argparse.SUPPRESS, "metavar": flag.form}
        if flag.group == PLACES:
            groups[flag.group].add_argument(name, nargs="*" if flag.kind == Several else "?", **how)
            continue
        if flag.kind is bool:  # a file of settings may have said yes
            both = "config" in known and flag.group != EVERY
            how = {"help": flag.help, "action": argparse.BooleanOptionalAction if both else "store_true"}
        elif flag.kind == PAIR:
            how |= {"nargs": 2, "metavar": tuple(flag.form.split())}
        elif flag.kind == Several:
            how["action"] = "append"
        groups[flag.group].add_argument(*flag.spellings, dest=name, **how)
    groups[EVERY].add_argument("-h", "--help", action="help", help="Show this and do nothing else.")
    return parser


def _refuse(command: str, known: Mapping[str, Flag], rest: Sequence[str]) -> None:
    """The sentence on words that nothing takes, flags first."""
    for word in rest:
        if word.startswith("-") and not _NUMBER.match(word):
            name = word.partition("=")[0]
            flags = ["--help", *(str(flag) for flag in known.values() if flag.group != PLACES)]
            hint = suggest(name, flags).replace("'", "").rstrip(".")
            raise SfumatoError(f"`sfumato {command}` has no flag {name}: {hint}")
    if rest:
        raise SfumatoError(f"`sfumato {command}` does not know what to do with {rest[0]!r}")


def _read(flag: Flag, value: Any) -> Any:
    """The value of the flag's type that its text (or texts) says."""
    if isinstance(value, list):
        return tuple(_read(flag, one) for one in value)
    if flag.few and value not in flag.few:
        raise SfumatoError(f"{flag} takes {flag.takes}, not {value!r}")
    try:
        return int(value) if flag.kind is int else float(value) if flag.kind in (float, PAIR) else value
    except ValueError:
        raise SfumatoError(f"{flag} takes {flag.takes}, not {value!r}") from None


def _called(name: str, word: str | None, key: str, text: str) -> str:
    """What a flag names with one more argument, as settings spell it: DiT(depth=8)."""
    if word is None:
        raise SfumatoError(f"--{name}.{key} is an argument of what --{name} names: give that, too")
    inside = word.strip().removesuffix(")")
    mark = "(" if inside == word.strip() else "" if inside.endswith("(") else ", "
    value = f"({text})" if "," in text and text[0] not in "([" else text
    return f"{inside}{mark}{key}={value})"


def _with_config(given: dict[str, Any]) -> dict[str, Any]:
    """What flags say, over the settings of the file that --config names."""
    if "config" not in given:
        return given
    values = dataclasses.asdict(from_yaml(given["config"]))
    kinds = (f"{name}:{kind}" for name, kind in values["conditions"].items())
    values["conditions"] = (*kinds, *given.pop("conditions", ()))
    if "minutes" in given or "steps" in given:
        values["minutes"] = values["steps"] = None  # a budget on the command line replaces the file's
    return {**values, **given}


def train_config(options: Any, command: str = "train") -> TrainConfig:
    """The settings of a run out of the options of `train` or `plan`, checked."""
    if not options.data:
        raise SfumatoError(
            f"`sfumato {command}` needs DATA: a folder of images, a .npy, .npz, .tar or .parquet file, a built-in set"
        )
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**{**given, "conditions": declared(options.conditions)})


def declared(words: Sequence[str]) -> dict[str, str]:
    """NAME:KIND ... -> {name: kind}; the kinds are checked where the data is."""
    return dict(_pair(word, ":", "NAME:KIND, such as temperature:scalar") for word in words)


def asked(words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE ... -> {name: value}, as they are written."""
    return dict(_pair(word, "=", "NAME=VALUE, such as temperature=300") for word in words)


def _pair(word: str, mark: str, form: str) -> tuple[str, str]:
    name, found, value = word.partition(mark) if mark == "=" else word.rpartition(mark)
    if found and name.strip() and not value.strip() and mark == "=":
        name = name.strip()
        raise SfumatoError(
            f"--condition {name}= says no value: give one, {name}=VALUE, or leave it out to leave it open"
        )
    if not (found and name.strip() and value.strip()):
        raise SfumatoError(f"--condition takes {form}, not {word!r}")
    return name.strip(), value.strip()
