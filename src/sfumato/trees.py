"""Convert parts to trees {"name": .., "args": {..}}, the form used in files and settings, and back.

A tree contains names, never code to import: every name must be registered, as a kind that a file may contain
(`registry.KINDS`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from . import registry, schema
from .errors import SfumatoError
from .registry import KINDS


def tree(thing: Any, of: str = "") -> Any:
    """{"name": .., "args": {..}} of a part, whose arguments may be parts themselves: plain JSON, for `build`.

    The arguments come from its `config` (a dict, or a method that returns one, with or without the name), from
    `to_dict` if its class has `from_dict`, from the attributes of a dataclass or a model, or from the constructor
    arguments that a registered class remembers. Raises SfumatoError if there is none of these.
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
        what = f"{of} contains a {name}, which no file could describe" if of else f"No file could describe {name}"
        raise SfumatoError(
            f"{what} well enough to rebuild it: give {name} a property `config`, the dict of its constructor's "
            f'arguments, or decorate its class with @sf.register("network") before creating the object.'
        )
    asked = _asked(type(thing))
    for key, value in args.items():
        _findable(value, asked.get(key), name)
    return {"name": name, "args": {key: tree(value, name) for key, value in args.items()}}


def _findable(value: Any, kind: str | None, of: str) -> None:
    """Raise SfumatoError for an argument that a file would turn into another class of the same name."""
    if isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            _findable(each, kind, of)
        return
    own = name_class(value)
    found: Any = registry.found(kind, own.__name__)
    if found is not None and found is not own and found.__module__.startswith(f"{__package__}."):
        raise SfumatoError(
            f"{of} contains a {own.__name__}, which a file would confuse with the {found.__name__} of "
            f"{found.__module__}: give the class another name."
        )


def name_class(thing: Any) -> type:
    """The class of a part, without the subclass that torch makes of a sharded network."""
    return next(kind for kind in type(thing).__mro__ if not kind.__name__.startswith("FSDP"))


def name_of(thing: Any) -> str:
    """The name of a part's own class."""
    return name_class(thing).__name__


def _made_with(thing: Any) -> dict[str, Any] | None:
    """The constructor arguments of a part, by name; None if unknown."""
    own_config = "config" in getattr(thing, "__dict__", {}) or hasattr(type(thing), "config")  # not a wrapped one's
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


def build(tree: Any, kind: str, where: str = "") -> Any:
    """Rebuild the part of this kind that a tree describes. where: the keys that lead to it, for errors.

    Raises SfumatoError for a name that is not registered as a kind that files may contain, and for missing, unknown and
    impossible arguments.
    """
    where = where or kind
    if not is_tree(tree):
        got = f"the keys {sorted(map(str, tree))}" if isinstance(tree, Mapping) else f"{tree!r:.60}"
        raise SfumatoError(f'{where}: a {KINDS[kind].words} is {{"name": ..., "args": {{...}}}}; got {got:.200}.')
    if not registry.known(kind, tree["name"]):
        raise _lacking(tree["name"], kind)
    return _made(tree["name"], registry.get(kind, tree["name"]), tree["args"], f"{where}.args")


def is_tree(tree: Any) -> bool:
    """Whether a value has the form {"name": .., "args": {..}}."""
    named = isinstance(tree, Mapping) and set(tree) == {"name", "args"}
    return named and isinstance(tree["name"], str) and isinstance(tree["args"], Mapping)


def _built(tree: Any, kind: str | None, where: str) -> Any:
    """Rebuild an argument and everything inside it. kind: the required kind, if several kinds have this name."""
    if is_tree(tree):
        maker = registry.found(kind, tree["name"])
        if maker is None:
            raise _lacking(tree["name"], kind)
        return _made(tree["name"], maker, tree["args"], f"{where}.args")
    if isinstance(tree, list):
        return [_built(each, kind, f"{where}.{i}") for i, each in enumerate(tree)]
    pairs = tree.items() if isinstance(tree, Mapping) else ()
    return {key: _built(value, kind, f"{where}.{key}") for key, value in pairs} if isinstance(tree, Mapping) else tree


def _made(name: str, maker: Any, args: Mapping[str, Any], where: str) -> Any:
    """Construct a part from its arguments, checked against its signature."""
    if hasattr(maker, "from_dict"):
        return _said_where(where, maker.from_dict, args)
    asked, checks, signature = _asked(maker), schema.of_signature(maker), inspect.signature(maker)
    for key, value in args.items():
        _said_where(where, registry.refuse_unknown, name, signature, key)
        checks.get(key, schema.anything)(value, f"{where}.{key}")
    values = {key: _built(value, asked.get(key), f"{where}.{key}") for key, value in args.items()}
    if dataclasses.is_dataclass(maker):
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return _said_where(where, registry.call, maker, name, [], values)


def _said_where(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), whose SfumatoError also names the place in the file."""
    try:
        return function(*args)
    except SfumatoError as error:
        raise SfumatoError(f"{where}: {error}") from error.__cause__


def _asked(maker: Any) -> dict[str, str]:
    """Argument -> the kind of part that its annotation, or else its name, requires."""
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
    """Raise SfumatoError for plain arguments that would be read from a file as something else."""
    if isinstance(value, dict):
        if set(value) == {"name", "args"} or not all(isinstance(key, str) for key in value):
            raise SfumatoError(
                f"{of} contains the dict {value!r:.80}, which is ambiguous in a file: use keys that are text, other "
                "than just 'name' and 'args'."
            )
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _plain(each, of)


def _lacking(name: str, kind: str | None) -> SfumatoError:
    """The error for a name that is not registered as a kind that files may contain. kind: the expected one."""
    what = "class" if kind is None else KINDS[kind].words
    other = next((each for each in KINDS if not KINDS[each].held and registry.known(each, name)), None)
    if other is not None:
        return SfumatoError(f"A model file holds no {KINDS[other].words}, and this one names {name!r} as a {what}.")
    near = get_close_matches(name, registry.held(kind), n=1)
    return SfumatoError(
        f"There is no {what} {name!r} here{f', did you mean {near[0]!r}?' if near else '.'} {give(name)}"
    )


def give(name: str) -> str:
    """Advice for a user's class that is not registered."""
    return (
        f"Register your own class first, or pass it along with the file: modules=[{name}] in Python, --modules FILE on "
        "the command line."
    )


def word(tree: Any) -> str:
    """A tree as a word for `registry.make`."""
    if is_tree(tree):
        return f"{tree['name']}({', '.join(f'{key}={word(value)}' for key, value in tree['args'].items())})"
    return repr(tuple(tree) if isinstance(tree, list) else tree)
