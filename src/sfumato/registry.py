"""Registry of named parts: each is registered where it is defined; lists, help texts and errors get their names here.

    @register("schedule", "cosine")      sf.train(x, schedule="cosine(margin=0.01)")      --schedule cosine
    class Cosine(Schedule): ...          {"name": "Cosine", "args": {"margin": 0.01}}     in a file

A part has a registered name, for settings and the command line, and its class name, for files. The package's own
registrations are read from the source text of its modules, so that listing names imports nothing; a module is imported
when one of its parts is used. Users register their own parts in the same way.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, final

from .errors import SfumatoError, suggest

T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of registered part.

    words: its name in messages. base: the type that stands for it in annotations. held: whether a model file may
    contain it. Loggers, optimisers, losses and checks are never constructed because a file names them.
    """

    words: str
    base: str | None = None
    held: bool = False


KINDS: dict[str, Kind] = {
    "schedule": Kind("noise schedule", "Schedule", held=True),
    "target": Kind("target"),
    "weight": Kind("weight", "Weight"),
    "density": Kind("time density", "TimeDensity"),
    "solver": Kind("solver", "Solver", held=True),
    "network": Kind("network", "Module", held=True),
    "process": Kind("process", "Process", held=True),
    "row": Kind("row of a symbol"),
    "condition": Kind("condition", "Condition", held=True),
    "format": Kind("file format"),
    "model": Kind("model", "Model", held=True),
    "loss": Kind("loss", "Loss"),
    "coupling": Kind("coupling", "Coupling"),
    "teacher": Kind("teacher", "Teacher"),
    "optimizer": Kind("optimizer"),
    "logger": Kind("logger", "Logger"),
    "check": Kind("check"),
    "metric": Kind("metric"),
    "features": Kind("set of features"),
    "method": Kind("method for inverse problems", "Method"),
    "part": Kind("part of a file", held=True),
}

_WRITTEN = re.compile(r'^@register\("(\w+)"(?:, "([^"]+)")?', re.MULTILINE)
_DEFINED = re.compile(r"^(?:class|def) (\w+)", re.MULTILINE)
_WORD = re.compile(r"\s*([^\s(]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_MADE: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in KINDS}  # by registered name
PARSING = threading.Lock()  # CPython 3.11 may fail where two threads parse at once (gh-106905)
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # *args, **more
ARGUMENTS = "_made_with"
FILES: list[str] = []  # the user's files that were run, so that other processes can run them too
_OWN: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in KINDS}  # by the name of the class or function


def register(kind: str, name: str | None = None, **preset: Any) -> Callable[[T], T]:
    """A decorator that registers a class or function as a `kind` named `name` (by default its own name).

    preset: arguments that are fixed under this name. A part may have several names. The package's names cannot be
    reused; users may register their own again, as when a notebook cell runs twice.
    """
    _known_kind(kind)

    def keep(thing: Any) -> Any:
        if not callable(thing):
            raise SfumatoError(f"A {KINDS[kind].words} is registered as a class or a function, not as {thing!r}.")
        own = getattr(thing, "__name__", None) or type(thing).__name__
        called, at = name or own, getattr(thing, "__module__", "")
        where = _written()[kind].get(called) or _classes()[kind].get(called)
        if where is not None and where != at:
            raise SfumatoError(f"There is a {KINDS[kind].words} {called!r} in {where} already: take another name.")
        _MADE[kind][called] = partial(thing, **preset) if preset else thing
        if isinstance(thing, type):
            _OWN[kind][own] = thing
            _capture(thing)
        return thing

    return keep


def _known_kind(kind: str) -> None:
    if kind not in KINDS:
        raise SfumatoError(f"Nothing is registered as {kind!r}: {suggest(str(kind), KINDS)}")


# -- the package's own parts ------------------------------------------------------------------------------------------


@cache
def _scanned() -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """(kind -> registered name -> module, kind -> class name -> module), from the package's source text."""
    names: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    classes: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    home = Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\n@register(" not in text:
            continue
        module = ".".join((__package__, *path.relative_to(home).with_suffix("").parts)).removesuffix(".__init__")
        for found in _WRITTEN.finditer(text):
            what = _DEFINED.search(text, found.end())
            assert what is not None, f"{path}: a registration that stands on nothing"
            names[found[1]][found[2] or what[1]] = module
            if what[0].startswith("class"):
                classes[found[1]][what[1]] = module
    return names, classes


def _written() -> dict[str, dict[str, str]]:
    return _scanned()[0]


def _classes() -> dict[str, dict[str, str]]:
    return _scanned()[1]


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind: the package's in source order, then the user's. Imports nothing."""
    _known_kind(kind)
    return tuple(dict.fromkeys((*_written()[kind], *_MADE[kind])))


def ships(kind: str, name: str) -> bool:
    """Whether this name belongs to the package itself, so that every process knows it."""
    return name in _written()[kind] or name in _classes()[kind]


def get(kind: str, name: str) -> Callable[..., Any]:
    """The class or function with this registered name or class name. Raises SfumatoError with a suggestion."""
    _known_kind(kind)
    for made, written in ((_MADE, _written()), (_OWN, _classes())):
        if name not in made[kind] and name in written[kind]:
            import_module(written[kind][name])
        if name in made[kind]:
            return made[kind][name]
    raise SfumatoError(f"There is no {KINDS[kind].words} {name!r}: {suggest(str(name), names(kind))}")


def known(kind: str, name: str) -> bool:
    """Whether a kind has this registered name or class name. Imports nothing."""
    return any(name in where for where in (_MADE[kind], _OWN[kind], _written()[kind], _classes()[kind]))


def found(kind: str | None, name: str) -> Callable[..., Any] | None:
    """The class or function for a name in a file: of the kind that its place requires, else of any other kind that a
    file may hold."""
    held = [each for each in KINDS if KINDS[each].held]
    for each in (*([kind] if kind in held else []), *held):
        if name in _OWN[each] or name in _classes()[each]:
            return get(each, name)
    return None


def held(kind: str | None = None) -> list[str]:
    """The names of the classes that a file may hold: those of one kind, or of all."""
    kinds = [each for each in KINDS if KINDS[each].held and kind in (None, each)]
    return [own for each in kinds for own in (*_classes()[each], *_OWN[each])]


@final
class Named(Mapping[str, Callable[..., Any]]):
    """A read-only view of the registry for one kind: name -> class or function."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in names(self.kind):
            raise KeyError(name)
        return get(self.kind, name)

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.kind))

    def __len__(self) -> int:
        return len(names(self.kind))


# -- words ------------------------------------------------------------------------------------------------------------


def bare(word: Any) -> Any:
    """The name in a setting such as sigmoid(bias=-2)."""
    found = _WORD.fullmatch(word) if isinstance(word, str) else None
    return found[1] if found else word


def check(kind: str, word: str) -> None:
    """Raise SfumatoError for a word with an unknown name. Imports nothing."""
    name = bare(word)
    if _WORD.fullmatch(word) is None or not known(kind, name):
        raise SfumatoError(f"There is no {KINDS[kind].words} {name!r}: {suggest(name, names(kind))}")


def make(kind: str, word: Any, given: Mapping[str, Any] | None = None) -> Any:
    """Construct the part that a word names: "heun", "sigmoid(bias=-2)", "p2(0.5, k=2)", "shifted(cosine, 2)".

    Anything but text is returned as it is, so that objects are accepted wherever names are. given: values for arguments
    that the word does not set; arguments that a part does not have are ignored.
    """
    if not isinstance(word, str):
        return word
    check(kind, word)
    name, given = bare(word), given or {}
    maker = get(kind, name)
    signature = inspect.signature(maker)
    plain, named = _arguments(name, signature, word, given)
    taken = (*named, *list(signature.parameters)[: len(plain)])
    filled = {key: value for key, value in given.items() if key in signature.parameters and key not in taken}
    return call(maker, name, plain, {**filled, **named})


def call(maker: Callable[..., Any], name: str, plain: list[Any], named: Mapping[str, Any]) -> Any:
    """maker(*plain, **named). Raises SfumatoError if arguments are missing, too many, or of no use to the maker."""
    signature = inspect.signature(maker)
    plain, named = _spread(signature, plain, named)
    try:
        signature.bind(*plain, **named)
    except TypeError as error:
        missing = re.search(r"missing a required(?: keyword-only)? argument: '(\w+)'", str(error))
        what = f"{name} cannot be made so"
        if missing:
            what = f"{name} needs the argument {missing[1]!r}, {name}({missing[1]}=...)"
        raise SfumatoError(f"{what}: {_taken(name, signature)}.") from None
    try:
        return maker(*plain, **named)
    except SfumatoError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise SfumatoError(f"{name} cannot be made with these arguments ({why}): {_taken(name, signature)}.") from error


def refuse_unknown(name: str, signature: inspect.Signature, key: str) -> None:
    """Raise SfumatoError, with a suggestion, for an argument that a part does not take."""
    if key not in signature.parameters and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        hint = suggest(key, signature.parameters) if signature.parameters else "it takes none."
        raise SfumatoError(f"{name} has no argument {key!r}: {hint}")


def _arguments(
    name: str, signature: inspect.Signature, word: str, given: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """(positional, keyword) arguments in a word, parsed by Python's grammar; the name before them need not be a Python
    name (dpm++2m)."""
    source = "f" + word.strip().removeprefix(name).strip()
    try:
        with PARSING:
            tree = ast.parse(source if source != "f" else "f()", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise SfumatoError(
            f"{word} is not understood: write arguments as in Python, name(value, key=value), and put names that are "
            "not valid in Python, such as 'dpm++2m', in quotes."
        )
    parameters = list(signature.parameters.values())
    plain = [
        _value(node, source, parameters[i] if i < len(parameters) else None, word, given)
        for i, node in enumerate(tree.args)
    ]
    named = {}
    for each in tree.keywords:
        key = str(each.arg)  # None of **more, which nothing takes
        refuse_unknown(name, signature, key)
        if key in named:
            raise SfumatoError(f"{word} is not understood: {key} is given twice.")
        named[key] = _value(each.value, source, signature.parameters.get(key), word, given)
    return plain, named


def _value(
    node: ast.expr, source: str, parameter: inspect.Parameter | None, word: str, given: Mapping[str, Any]
) -> Any:
    """A literal, or the name of another part or a plain word, as the argument's type requires."""
    asks = "" if parameter is None or parameter.annotation is parameter.empty else str(parameter.annotation)
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = ast.get_source_segment(source, node)
    if not isinstance(value, str):
        return _fitting(value, asks, parameter, word)
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if value in ("true", "false") and "bool" in asks:
        return value == "true"
    kind = next((kind for kind, (_, base, _) in KINDS.items() if base and re.search(rf"\b{base}\b", asks)), None)
    if kind is not None:
        return make(kind, value, given)
    if "str" in asks or not asks:
        return value
    raise SfumatoError(f"{word} is not understood: {value!r} is not a number.")


def _fitting(value: Any, asks: str, parameter: inspect.Parameter | None, word: str) -> Any:
    """The value converted to the argument's type: to a whole number, or from one number to a sequence of one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and re.search(r"Sequence|tuple|list", asks) and not re.search(r"\b(int|float) \|", asks):
        return (value,)
    one = re.fullmatch(r"(?:<class ')?(int|float)(?:'>)?( \| None)?", asks)
    if one is None or parameter is None or parameter.kind in _MANY or value is None and one[2]:
        return value
    whole = one[1] == "int"
    if not number or whole and value % 1 != 0:  # of infinity and NaN that is NaN
        what = "a whole number" if whole else "a number"
        raise SfumatoError(f"{word} is not understood: {parameter.name} takes {what}, not {value!r:.80}.")
    return int(value) if whole else value


def _spread(
    signature: inspect.Signature, plain: list[Any], named: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """(positional, keyword) arguments of a call from arguments by name; `*args` and `**more` are under these names."""
    plain, named, parameters = list(plain), dict(named), list(signature.parameters.values())
    many = any(p.kind is p.VAR_POSITIONAL and p.name in named for p in parameters)
    for p in parameters[len(plain) :]:
        if p.kind is p.VAR_POSITIONAL:
            plain += named.pop(p.name, ())
        elif p.kind is p.VAR_KEYWORD:
            named |= named.pop(p.name, {})
        elif p.name in named and (p.kind is p.POSITIONAL_ONLY or many and p.kind is p.POSITIONAL_OR_KEYWORD):
            plain.append(named.pop(p.name))
    return plain, named


def _taken(name: str, signature: inspect.Signature) -> str:
    """The arguments of a part with their defaults, in words."""
    if not signature.parameters:
        return f"{name} takes no arguments"
    return f"{name} takes {', '.join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())}"


# -- the user's parts -------------------------------------------------------------------------------------------------


def _capture(thing: type) -> None:
    """Make objects of a class without `config` remember their constructor's arguments."""
    if hasattr(thing, "config") or dataclasses.is_dataclass(thing) or thing.__module__.startswith(__package__ + "."):
        return
    start = thing.__init__  # type: ignore[misc]
    if hasattr(start, "remembers"):
        return

    @functools.wraps(start)
    def init(self: Any, *args: Any, **named: Any) -> None:
        if type(self) is thing:
            found = inspect.signature(start).bind(self, *args, **named).arguments
            self.__dict__[ARGUMENTS] = {name: _kept(value) for name, value in list(found.items())[1:]}
        start(self, *args, **named)

    init.remembers = True  # type: ignore[attr-defined]
    thing.__init__ = init  # type: ignore[misc]


def _kept(value: Any) -> Any:
    """A copy of an argument, safe from later changes."""
    if isinstance(value, list | tuple):
        return [_kept(each) for each in value]
    return {key: _kept(each) for key, each in value.items()} if isinstance(value, dict) else value


def add(modules: Iterable[Any]) -> None:
    """Register the user's classes under their own names, as networks or losses, unless already registered."""
    for each in modules:
        if not isinstance(each, type):
            raise SfumatoError(f"modules must be classes, as in modules=[MyNet], not {each!r}.")
        if not any(each is made for kind in KINDS for made in _OWN[kind].values()):
            register("loss" if hasattr(each, "losses") else "network")(each)


def add_file(path: str) -> None:
    """Run the user's Python file, which registers its parts. Only the user can name one, never a model file."""
    place = str(Path(path).expanduser().resolve())
    if place not in FILES:
        from_file(path)
        FILES.append(place)


def from_file(path: str) -> ModuleType:
    """Run the user's Python file; its module."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise SfumatoError(f"{path} is no Python file: modules are files that register things, such as my_parts.py.")
    called = f"sfumato_modules_{place.stem}"
    spec = importlib.util.spec_from_file_location(called, place)
    if spec is None or spec.loader is None:
        raise SfumatoError(f"{path} is no Python file: its name has to end with .py.")
    sys.modules[called] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SfumatoError:
        raise
    except Exception as error:
        raise SfumatoError(f"{path} could not be run ({type(error).__name__}: {error}).") from error
    return module
