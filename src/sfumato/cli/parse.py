"""Words of the command line -> the options of a command; every mistake is one sentence with a suggestion."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any, get_type_hints

import tyro

from sfumato.cli.options import CLASSES
from sfumato.errors import SfumatoError, suggest
from sfumato.training.config import NAMING, TrainConfig, from_yaml

_ARGUMENT = re.compile(r"--([\w-]+)\.([\w-]+)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-\.?\d")


def parse(command: str, words: Sequence[str]) -> Any:
    """The options of `command`; `--help` prints and raises SystemExit(0), mistakes raise SfumatoError."""
    kind = CLASSES[command]
    words, arguments = _apart(kind, words)
    _refuse_unknown(command, kind, words)
    default = {"default": _with_config(kind, words)} if command in ("train", "plan") else {}
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            options = tyro.cli(
                kind, prog=f"sfumato {command}", args=words, config=(tyro.conf.FlagCreatePairsOff,), **default
            )
            called = {name: _called(getattr(options, name), name, more) for name, more in arguments.items()}
            return dataclasses.replace(options, **called)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise SfumatoError(_sentence(command, kind, heard.getvalue())) from None


def _apart(kind: type, words: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """(words, arguments of what a flag names) of words such as --net DiT --net.depth 8 --weight.bias=-2."""
    rest: list[str] = []
    found: dict[str, dict[str, str]] = {}
    waiting = iter(words)
    for word in waiting:
        match = _ARGUMENT.fullmatch(word)
        name = match[1].replace("-", "_") if match else ""
        if match is None or name not in (*NAMING, "solver") or name not in kind.__annotations__:
            rest.append(word)
            continue
        value = match[3] if match[3] is not None else next(waiting, None)
        if value is None or (match[3] is None and value.startswith("-") and not _NUMBER.match(value)):
            raise SfumatoError(f"--{match[1]}.{match[2]} needs a value")
        found.setdefault(name, {})[match[2].replace("-", "_")] = value
    return rest, found


def _called(word: str | None, name: str, more: dict[str, str]) -> str:
    """A name with further arguments, as settings spell them."""
    if word is None:
        raise SfumatoError(f"--{name}.{next(iter(more))} is an argument of what --{name} names: give that, too")
    inside = f"{word.strip()}(" if not word.strip().endswith(")") else word.strip()[:-1]
    inside += "" if inside.endswith("(") else ", "
    values = {key: f"({text})" if "," in text and text[0] not in "([" else text for key, text in more.items()}
    return f"{inside}{', '.join(f'{key}={text}' for key, text in values.items())})"


def _flags(kind: type) -> dict[str, Any]:
    """Every spelling of every flag -> the type of its value."""
    found: dict[str, Any] = {"--help": None, "-h": None}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "aliases")]
        plain = get_type_hints(kind)[name]
        if any(mark is tyro.conf.Positional for mark in getattr(hint, "__metadata__", ())):
            continue
        long = (marks[0].name if marks else None) or name.replace("_", "-")
        for spelling in (f"--{long}", *((marks[0].aliases or ()) if marks else ())):
            found[spelling] = plain
    return found


def _refuse_unknown(command: str, kind: type, words: Sequence[str]) -> None:
    known = _flags(kind)
    for word in words:
        if word == "--":
            return
        spelling = word.partition("=")[0]
        if not word.startswith("-") or word == "-" or _NUMBER.match(word):
            continue
        if spelling.startswith("--"):
            spelling = spelling.replace("_", "-")
        if spelling not in known:
            hint = suggest(spelling, [name for name in known if name.startswith("--")]).replace("'", "").rstrip(".")
            given = word.partition("=")[0]
            raise SfumatoError(f"`sfumato {command}` has no flag {given}: {hint} (sfumato {command} --help lists them)")


def _with_config(kind: type, words: Sequence[str]) -> Any:
    """Defaults of `train`: those of TrainConfig, and over them the file that --config names."""
    path = None
    for place, word in enumerate(words):
        if word == "--config":
            path = next(iter(words[place + 1 :]), None)
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    if path is None:
        return kind()
    values = dataclasses.asdict(from_yaml(path))
    values["condition"] = tuple(f"{name}:{kind}" for name, kind in values.pop("conditions").items())
    if any(word.partition("=")[0] in ("--minutes", "--steps") for word in words):
        values["minutes"] = values["steps"] = None  # a budget on the command line replaces the file's
    return kind(**values)


def train_config(options: Any, command: str = "train") -> TrainConfig:
    """The settings of a run out of the options of `train` or `plan`, checked."""
    if not options.data:
        raise SfumatoError(
            f"`sfumato {command}` needs DATA: a folder of images, a .npy, .npz, .tar or .parquet file, a built-in set"
        )
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "conditions"]
    return TrainConfig(**{name: getattr(options, name) for name in names}, conditions=declared(options.condition))


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


def _sentence(command: str, kind: type, text: str) -> str:
    """tyro's boxed message as one sentence."""
    lines = [line.strip("│ \t") for line in text.splitlines() if not line.strip().startswith(("╭", "╰"))]
    blocks = re.split(r"\n[─-]{8,}(?:\n|$)", "\n".join(lines))
    # the title is part of the frame, or, where the terminal has no line drawing, a block of its own
    said = " ".join(blocks[0 if "╭" in text else min(1, len(blocks) - 1)].split())
    more = f" (sfumato {command} --help says more)"
    wrong = re.search(r"Error parsing (?:\S*/)?(--?[\w-]+|[A-Z]+):", said)
    values = re.search(r"from \[(.*?)\]", said) or re.search(r"literal.*: ('.*?')|to float: ('.*?')", said)
    if wrong and values:
        given = next(group for group in values.groups() if group is not None)
        return f"{wrong.group(1)} takes {_takes(_flags(kind).get(wrong.group(1)))}, not {given}{more}"
    short = re.search(r"Missing value for argument '(?:\S*/)?(--?[\w-]+)'", said)
    if short:
        return f"{short.group(1)} needs a value: {_takes(_flags(kind).get(short.group(1)))}{more}"
    missing = re.search(r"^\W*([A-Z]+)\b.*\(required\)", said) or re.search(r":\W*([A-Z]+)\b", said)
    if missing:
        return f"`sfumato {command}` needs {missing.group(1)}{more}"
    choice = re.search(r"invalid choice (.*?) for argument '(?:\S*/)?(--?[\w-]+)'.*?\((.*)\)", said)
    if choice:
        return f"{choice.group(2)} cannot be {choice.group(1)}: it takes {choice.group(3).replace(', ', ' or ')}{more}"
    extra = re.search(r"Unrecognized (?:options|arguments?): (.*)", said)
    if extra:
        return f"`sfumato {command}` does not know what to do with {extra.group(1)!r}{more}"
    return f"{said.rstrip('. ')}{more}"


def _takes(kind: Any) -> str:
    text = str(kind)
    if "tuple" in text:
        return "two numbers" if "float" in text else "NAME:KIND or NAME=VALUE"
    return "a number" if "float" in text else "a whole number" if "int" in text else "a value"
