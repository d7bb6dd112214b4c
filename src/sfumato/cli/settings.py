"""The flags of a training run, from the settings themselves. No torch here."""

from __future__ import annotations

import argparse
import dataclasses
from types import NoneType
from typing import Any, get_args, get_type_hints

from sfumato.cli.common import COLUMNS, DECLARED
from sfumato.cli.flags import Flag, flag, place, several
from sfumato.training.config import NAMING, TrainConfig, choices, docs

# the first setting of each group of flags -> the group's title
_GROUPS = {
    "out": "the run", "labels": "the data", "net": "the network and its loss", "batch": "training",
    "schedule": "the diffusion", "drop": "conditions, validation and samples",
    "checkpoint_every": "checkpoints and dashboards", "compile": "the machine",
}  # fmt: skip
_METAVARS = dict.fromkeys([*NAMING, "device"], "NAME")
_FLAGS = {"sources": "--from"}  # settings whose flag has a name of its own
_METAVARS |= {"sources": "DATA", "out": "FOLDER", "labels": "FILE", "init": "MODEL", "loggers": "NAMES"}
_METAVARS |= {"autoencoder": "MODEL", "cascade": "SIZES", "embedding": "NAME"}


def settings() -> list[Flag]:
    """The flags of TrainConfig, which checks their values like those of a YAML file."""
    words, hints, title, found = docs(), get_type_hints(TrainConfig), "", []
    for field in dataclasses.fields(TrainConfig):
        title = _GROUPS.get(field.name, title)
        if field.name == "data":
            found.append(place("data", "DATA", words["data"], nargs="?"))
            found.append(
                flag("--to", "DATA", "The training data, in the place of DATA.", group="the data", dest="data")
            )
        elif field.name == "conditions":
            found.append(several(":", "NAME:KIND", DECLARED, dest="conditions", group=title))
        elif field.name == "columns":
            found.append(several(":", "NAME:KIND", COLUMNS, name="--column", dest="columns", group=title))
        else:
            found.append(_setting(field, hints[field.name], words[field.name], title))
    for each in found:
        each.how["default"] = argparse.SUPPRESS  # so that unset flags do not override the YAML file
    return found


def _setting(field: dataclasses.Field[Any], hint: Any, words: str, group: str) -> Flag:
    """The flag of one setting; booleans also get a --no-energy, to override a YAML file."""
    kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
    name = ("-o " if field.name == "out" else "") + _FLAGS.get(field.name, "--" + field.name.replace("_", "-"))
    how = {"dest": field.name} if field.name in _FLAGS else {}
    if kind is bool:
        return flag(name, bool, words, field.default, group, action=argparse.BooleanOptionalAction)
    if kind is str:
        few = choices(field.name)
        kind = f"{{{','.join(few)}}}" if few and field.name not in NAMING else _METAVARS.get(field.name, "TEXT")
    return flag(name, kind, words, field.default, group, **how)


CONFIG = flag(
    "--config", "FILE",
    "A YAML file of settings, named like the flags (with _ for -); flags override it.",
    group="the run",
)  # fmt: skip

SETTINGS = [*settings(), CONFIG]
