"""Things as trees {"name": .., "args": {..}}, in which files and settings describe them, and things made of trees.

A tree names what it is made of and never code to import: what has the name has to be registered, as something of a kind
that a file may hold (`registry.KINDS`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from . import registry
from .errors import SfumatoError, suggest
from .registry import KINDS


def tree(thing: Any, of: str = "") -> Any:
    """{"name": .., "args": {..}} of a thing, whose arguments may be things themselves: plain JSON, for `build`.

    What it was made with is told by its `config` (a dict, or a method that gives one, with or without the name), by
    `to_dict` where its class has `from_dict`, by the attributes that a dataclass or a model has for its arguments, or
    is remembered from the making of a registered class. SfumatoError where nothing tells.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, list | tuple):
        return [tree(each, of) for each in thing]
    if isinstance(thing, Mapping):
        return {str(key): tree(value, of) for key, value in thing.items()}
    name = name_of(thing)
    if hasattr(type(thing), "from_dict"):
        return {"name": name, "args": thing.to_dict()}
    args = _made_with(thing)
    if args is None:
        what = f"{of} was made with a {name}, which no file could describe" if of else f"No file could describe {name}"
        raise SfumatoError(
            f"{what}, so that it could be made again: give {name} a property `config`, the dict of its "
            f'constructor\'s arguments, or write @sf.register("network") above its class before it is made.'
        )
    asked = _asked(type(thing))
    for key, value in args.items():
        _findable(value, asked.get(key), name)
    return {"name": name, "args": {key: tree(value, name) for key, value in args.items()}}


def _findable(value: Any, kind: str | None, of: str) -> None:
    """Refuse an argument in whose place a file would find another thing of its name."""
    if isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            _findable(each, kind, of)
        return
    own = name_class(value)
    found: Any = registry.found(kind, own.__name__)
    if found is not None and found is not own and found.__module__.startswith(f"{__package__}."):
        raise SfumatoError(
            f"{of} was made with a {own.__name__}, in whose place a file would find the {found.__name__} of "
            f"{found.__module__}: give the class another name."
        )


def name_class(thing: Any) -> type:
    """A thing's own class, also where its network is in shards, whose class torch makes of it."""
    return next(kind for kind in type(thing).__mro__ if not kind.__name__.startswith("FSDP"))


def name_of(thing: Any) -> str:
    """The name of a thing's own class."""
    return name_class(thing).__name__


def _made_with(thing: Any) -> dict[str, Any] | None:
    """The arguments that a thing was made with, by name; None where nothing tells them."""
    own_config = "config" in getattr(thing, "__dict__", {}) or hasattr(type(thing), "config")  # and not what it wraps
    said = thing.config if own_config else None
    said = said() if callable(said) else said
    if isinstance(said, Mapping):
        return dict(said["args"] if set(said) == {"name", "args"} else said)
    if registry.ARGUMENTS in getattr(thing, "__dict__", {}):
        _plain(list(thing.__dict__[registry.ARGUMENTS].values()), name_of(thing))
        return dict(thing.__dict__[registry.ARGUMENTS])
    own: Any = registry.found("model", name_of(thing)) if registry.known("model", name_of(thing)) else None
    if own is type(thing):
        return {key: getattr(thing, key) for key in inspect.signature(type(thing)).parameters if hasattr(thing, key)}
    if dataclasses.is_dataclass(thing):
        return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
    return None


def build(tree: Any, kind: str | None = None, given: Mapping[str, Any] | None = None) -> Any:
    """What `tree` described, made anew. kind: what kind of thing it has to be. given: as for `make`.

    Raises SfumatoError for a name that is not registered as what a file may hold, and for arguments that are missing or
    unknown.
    """
    if not _is_tree(tree):
        if kind is not None:
            got = f"the keys {sorted(tree)}" if isinstance(tree, Mapping) else repr(tree)
            raise SfumatoError(f'A {KINDS[kind].words} is described by {{"name": ..., "args": {{...}}}}; got {got}.')
        return _built(tree, None, given)
    name, args = str(tree["name"]), tree["args"]
    if kind is not None and not registry.known(kind, name):
        raise _lacking(name, KINDS[kind].words)
    maker: Any = registry.found(None, name) if kind is None else registry.get(kind, name)
    if maker is None:
        raise _lacking(name, "class")
    return _made(name, maker, args, given)


def _is_tree(tree: Any) -> bool:
    return isinstance(tree, Mapping) and set(tree) == {"name", "args"} and isinstance(tree["args"], Mapping)


def _built(tree: Any, kind: str | None, given: Mapping[str, Any] | None) -> Any:
    """An argument, or what is within it. kind: what its place asks for, by which alone names that two have part."""
    if _is_tree(tree):
        maker = registry.found(kind, str(tree["name"]))
        if maker is None:
            raise _lacking(str(tree["name"]), "class" if kind is None else KINDS[kind].words)
        return _made(str(tree["name"]), maker, tree["args"], given)
    if isinstance(tree, list):
        return [_built(each, kind, given) for each in tree]
    return {key: _built(value, kind, given) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _made(name: str, maker: Any, args: Mapping[str, Any], given: Mapping[str, Any] | None) -> Any:
    """A thing of these arguments."""
    if hasattr(maker, "from_dict"):
        return maker.from_dict(args)
    signature = inspect.signature(maker)
    known, asked = signature.parameters, _asked(maker)
    more = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for key in args:
        if key not in known and not more:
            raise SfumatoError(f"{name} does not take {key!r}, it has no argument of that name: {suggest(key, known)}")
    values = {key: _built(value, asked.get(key), given) for key, value in args.items()}
    values = {key: value for key, value in (given or {}).items() if key in known} | values
    missing = [key for key, p in known.items() if p.default is p.empty and key not in values and p.kind < p.VAR_KEYWORD]
    missing = [key for key in missing if known[key].kind is not inspect.Parameter.VAR_POSITIONAL]
    if missing:
        raise SfumatoError(f"{name} needs the argument {missing[0]!r}.")
    if dataclasses.is_dataclass(maker):
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    plain, named = registry.spread(signature, [], values)
    return maker(*plain, **named)


def _asked(maker: Any) -> dict[str, str]:
    """Argument -> the kind that its type, or else its name, asks for."""
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return {}
    bases = {kind: base for kind, (_, base, held) in KINDS.items() if base and held}
    found = {}
    for key, p in parameters.items():
        asks = "" if p.annotation is p.empty else str(p.annotation)
        kinds = [kind for kind, base in bases.items() if re.search(rf"\b{base}\b", asks)]
        kinds = kinds or [kind for kind in ("network", "process", "schedule") if key in (kind, kind[:3])]
        if len(kinds) == 1:
            found[key] = kinds[0]
    return found


def _plain(value: Any, of: str) -> None:
    """Refuse plain arguments that a file would give back as something else."""
    if isinstance(value, dict):
        if set(value) == {"name", "args"} or not all(isinstance(key, str) for key in value):
            raise SfumatoError(
                f"{of} was made with the dict {value!r:.80}, which no file could tell from what it stands for: give it "
                "keys that are text, other than 'name' and 'args' alone."
            )
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _plain(each, of)


def _lacking(name: str, what: str) -> SfumatoError:
    """What is to be said where nothing that a file may hold has this name."""
    other = next((kind for kind in KINDS if not KINDS[kind].held and registry.known(kind, name)), None)
    if other is not None:
        return SfumatoError(f"A model file holds no {KINDS[other].words}, and this one names {name!r} as a {what}.")
    near = get_close_matches(name, registry.held(), n=1)
    return SfumatoError(
        f"There is no {what} {name!r} here{f', did you mean {near[0]!r}?' if near else '.'} {give(name)}"
    )


def give(name: str) -> str:
    """What to do where a class of the user's is not here."""
    return (
        f"A class of your own is given beside the file, modules=[{name}] in Python and --modules FILE on the command "
        "line, or registered before."
    )


def word(tree: Any) -> str:
    """A tree as a word that `make` understands."""
    if isinstance(tree, Mapping) and set(tree) == {"name", "args"}:
        return f"{tree['name']}({', '.join(f'{key}={word(value)}' for key, value in tree['args'].items())})"
    return repr(tuple(tree) if isinstance(tree, list) else tree)
