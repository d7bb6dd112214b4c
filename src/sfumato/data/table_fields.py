"""One column of a table as a normal number and symbols, and back to the values, bit for bit.

    category   the index of its level; missing is one more level; many levels are written as digits in a mixed base
    number     v = (origin + step k) / 10^decimals,   u ~ uniform in [F(k-), F(k)],   z = Phi^-1(u) ~ N(0, 1)

F is the empirical distribution of k, by all its values where they are few, or else by its quantiles. Beside a number
stands a symbol where it may be missing, or where one value alone (an atom) holds a share of its own: 0 the number, then
the atoms, then missing; z is then noise, so that its law is normal whatever the symbol says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import schema
from ..errors import SfumatoError, counted, finite, suggest
from .column import Column

KINDS = ("category", "number")
FEW = 20  # numbers with at most so many different values are categories
STORED = 1024  # most values of a column, or quantiles, that a model file holds
REPEATED = 5  # values that occur so often in the mean are stored, and drawn, as they are
ATOM, LEAST_ATOM = 0.02, 10  # the share and the number of rows from which a value is an atom
BASE = 256  # most states of a symbol: more levels are digits
DECIMALS = 9
LARGEST = 2**53
EDGE = 1e-9  # of u: z lies within 6

Numbers = NDArray[np.float64]
_WORDS = ("null", "bool", "string", "large_string")
_TYPES = re.compile(
    r"null|bool|u?int(8|16|32)|int64|halffloat|float|double|(large_)?string|date32\[day\]|date64\[ms\]"
    r"|timestamp\[(s|ms|us|ns)(, tz=[\w/+:-]+)?\]"
)
_WHOLE = re.compile(r"-?\d{1,18}|-?[1-8]\d{18}")  # within int64
_FLOATS = {"halffloat": np.float16, "float": np.float32, "double": np.float64}


@dataclass(frozen=True)
class Field:
    """A column of a table: its name, its type and, by its kind, what its values may be.

    kind: "category" or "number". type: that of Arrow ("int64", "double", "timestamp[us]", "string", ...); dtype: that
    of pandas, if it came from there. missing: whether cells may be empty.
    levels, ordered, dictionary: of a category, its values as text, whether they have an order, whether they were
    declared. origin, step, decimals, values, shares, exact, atoms: of a number; step 0 is a continuous one, shares are
    those of the values up to each; exact: only `values` occur, else they are quantiles.
    """

    name: str
    kind: str
    type: str
    dtype: str = ""
    missing: bool = False
    levels: tuple[str, ...] = ()
    ordered: bool = False
    dictionary: bool = False
    origin: str = "0"
    step: float = 0.0
    decimals: int = 0
    values: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    exact: bool = False
    atoms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        def wrong(why: str) -> SfumatoError:
            return SfumatoError(f"the column {self.name!r} of a table {why}")

        if self.kind not in KINDS:
            raise wrong(f"must be of the kind {' or '.join(KINDS)}, not {self.kind!r:.40}")
        if not _TYPES.fullmatch(self.type) or (self.numeric and self.type in _WORDS):
            raise wrong(f"cannot be a {self.kind} of the type {self.type!r:.40}")
        if self.kind == "category":
            if len(set(self.levels)) < len(self.levels) or not (self.levels or self.missing):
                raise wrong("needs different levels, at least one")
            return
        if len(self.values) != len(self.shares) or not self.values:
            raise wrong("needs as many shares as values, at least one")
        if any(np.diff(self.shares) <= 0) or any(np.diff(self.values) < 0) or not 0 <= self.shares[-1] <= 1 + 1e-9:
            raise wrong("needs rising values, and shares that rise to 1")
        if not _WHOLE.fullmatch(self.origin) or not self.step.is_integer() or self.step > LARGEST:
            raise wrong(f"needs whole numbers as origin and step, not {self.origin!r:.40} and {self.step:g}")

    # -- the layout ------------------------------------------------------------------------------------------------

    @property
    def numeric(self) -> bool:
        """Whether it takes a normal number."""
        return self.kind == "number"

    @cached_property
    def states(self) -> tuple[int, ...]:
        """The number of states of each of its symbols."""
        if self.numeric:
            count = 1 + len(self.atoms) + self.missing
            return (count,) if count > 1 else ()
        count = len(self.levels) + self.missing
        digits = max(1, math.ceil(math.log(count, BASE) - 1e-12)) if count > 1 else 1
        base = max(2, math.ceil(count ** (1 / digits) - 1e-12))
        return (base,) * digits

    # -- encode ----------------------------------------------------------------------------------------------------

    def encode(self, column: Column, seed: int) -> tuple[Numbers | None, NDArray[np.int64]]:
        """(z (N,) or None, symbols (N, len(states)) int64) of values; the places within a cell are drawn by `seed`.

        Raises SfumatoError for a level, or an empty cell, that the column did not have when it was learned.
        """
        if not column.present.all() and not self.missing:
            raise SfumatoError(f"the column {self.name!r} has empty cells, which it had not in training: fill them")
        if not self.numeric:
            return None, self._digits(self._levels(column))
        z = np.random.default_rng(seed).normal(size=len(column))
        symbols = np.full(len(column), len(self.atoms) + 1)
        k = self._k(column.given)
        symbols[column.present] = self._atoms(k)
        plain = symbols == 0
        z[plain] = self._normal(k[symbols[column.present] == 0], np.random.default_rng(seed + 1))
        return z, symbols[:, None] if self.states else np.empty((len(column), 0), np.int64)

    def index(self, column: Column) -> NDArray[np.int64]:
        """The number of each cell's level, and that of the levels for an empty cell, (N,)."""
        return self._levels(column)

    def digits(self, column: Column) -> NDArray[np.int64]:
        """The symbols of a category, (N, len(states))."""
        return self._digits(self._levels(column))

    def _levels(self, column: Column) -> NDArray[np.int64]:
        index = {level: i for i, level in enumerate(self.levels)}
        spelt = texts(column.values, self.type)
        found = np.array(
            [index.get(text, -1) if here else len(index) for text, here in zip(spelt, column.present, strict=True)]
        )
        if (found < 0).any():
            unknown = spelt[int(np.flatnonzero(found < 0)[0])]
            raise SfumatoError(f"the column {self.name!r} has no level {unknown!r:.60}: it was not in training")
        return found

    @property
    def fillable(self) -> bool:
        """Whether it has any value that an empty cell could take."""
        return self.numeric or bool(self.levels)

    @property
    def constant(self) -> bool:
        """Whether all its cells are equal."""
        return len(self.levels) + len(self.values) + len(self.atoms) + self.missing <= 1

    def beyond(self, column: Column) -> int:
        """How many of its numbers lie beyond those of training, and are taken for the nearest of these."""
        if not self.numeric:
            return 0
        k, known = self._k(column.given), (*self.values, *self.atoms)
        return int(((k < min(known)) | (k > max(known))).sum())

    def filled(self, column: Column) -> Column:
        """The column with some value of its own in each empty cell, where it has any."""
        if not self.fillable:
            return column
        ends = np.ceil(self.values[:1]) if self.step else np.array(self.values[:1])
        first = self._value(ends) if self.numeric else values_of(self.levels, self.type)
        return Column(np.where(column.present, column.values, first[0]), np.ones(len(column), bool))

    def column(self, value: Any, count: int) -> Column:
        """One value in every row, as a user says it: None or no text for an empty cell, dates as 2024-12-31.

        Raises SfumatoError for a value that the column did not have in training.
        """
        if value is None or (isinstance(value, str) and not value):
            if not self.missing:
                raise SfumatoError(f"the column {self.name!r} has no empty cells: give a value")
            empty = self.filled(Column(np.zeros(1, object), np.zeros(1, bool))).values
            return Column(np.repeat(empty, count), np.zeros(count, bool))
        found = self._number(value) if self.numeric else self._level(value)
        return Column(np.repeat(found, count), np.ones(count, bool))

    def _level(self, value: Any) -> np.ndarray:
        spelt = str(value).lower() if self.type == "bool" else str(value)
        if self.type in _FLOATS and not isinstance(value, str):
            spelt = repr(float(value))
        if spelt not in self.levels:
            raise SfumatoError(f"the column {self.name!r} has no level {spelt!r:.60}: {suggest(spelt, self.levels)}")
        return values_of((spelt,), self.type)

    def _number(self, value: Any) -> np.ndarray:
        """A value as the column holds it, (1,): dates as whole numbers."""
        try:
            if is_date(self.type):
                read = np.array([np.datetime64(value)]).astype(f"datetime64[{date_unit(self.type)}]").astype(np.int64)
            else:
                read = np.array([finite(self.name, value) if self.type in _FLOATS else int(value)])
        except (ValueError, TypeError, OverflowError):
            what = "date" if is_date(self.type) else "number" if self.type in _FLOATS else "whole number"
            raise SfumatoError(f"the column {self.name!r} holds {what}s, and {value!r:.60} is none") from None
        k, known = self._k(read), np.array([*self.values, *self.atoms])
        if not known.min() <= k[0] <= known.max():
            low, high = self._shown(np.array([known.min(), known.max()]))
            raise SfumatoError(f"the column {self.name!r} ran from {low} to {high} in training, not to {value!r:.60}")
        between = self.step and not np.isclose(self._value(np.rint(k))[0], read[0], rtol=1e-9, atol=0)
        if between or (self.exact and k[0] not in self.values):
            near = self._shown(known[np.abs(known - k[0]).argmin()][None] if self.exact else np.rint(k))[0]
            raise SfumatoError(f"the column {self.name!r} does not have the value {value!r:.60}, but {near}")
        return read

    def _shown(self, k: Numbers) -> list[str]:
        """Values as a user writes them, of k within those of the column."""
        ends = np.ceil(min(self.values)), np.floor(max(self.values))
        values = self._value(k.clip(*ends) if self.step else k)
        dates = f"datetime64[{date_unit(self.type)}]" if is_date(self.type) else values.dtype
        return [str(value) for value in values.astype(dates)]

    def _digits(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        base, count = self.states[0], len(self.states)
        return np.stack([index // base**place % base for place in reversed(range(count))], 1)

    def _k(self, values: np.ndarray) -> Numbers:
        """k of values: whole numbers, or the values themselves where they are continuous."""
        if not self.step:
            return values.astype(np.float64)
        whole = values if values.dtype.kind in "iu" else np.rint(values.astype(np.float64) * 10.0**self.decimals)
        return (whole.astype(np.int64) - int(self.origin)) / self.step

    def _atoms(self, k: Numbers) -> NDArray[np.int64]:
        """1 + the number of the atom, or 0."""
        found = np.zeros(len(k), np.int64)
        for i, atom in enumerate(self.atoms):
            found[k == atom] = i + 1
        return found

    def _normal(self, k: Numbers, rng: np.random.Generator) -> Numbers:
        """z of numbers that are no atoms."""
        values, shares = np.array(self.values), np.array(self.shares)
        if self.exact:
            place = np.searchsorted(values, k).clip(0, len(values) - 1)
            low, high = np.concatenate(([0.0], shares))[place], shares[place]
        else:
            k = k + rng.uniform(-0.49, 0.49, len(k)) if self.step else k  # what float32 rounds stays in its cell
            first, last = np.searchsorted(values, k, "left"), np.searchsorted(values, k, "right") - 1
            between = np.interp(k, values, shares)
            tied = last >= first
            low = np.where(tied, shares[first.clip(0, len(values) - 1)], between)
            high = np.where(tied, shares[last.clip(0)], between)
        u = low + (high - low) * rng.uniform(0.01, 0.99, len(k))
        return np.asarray(torch.special.ndtri(torch.from_numpy(u.clip(EDGE, 1 - EDGE))).numpy())

    def cells(self, column: Column) -> Numbers:
        """(low z, high z, width) of the cell of each value of a number, (N, 3): where its z may lie.

        The width is 1 where a cell is a value, or that of a continuous value's quantile segment. Of values that were
        not in training low and high are equal; those of atoms and empty cells mean nothing.
        """
        k = self._k(np.where(column.present, column.values, 0))
        values, shares = np.array(self.values), np.array(self.shares)
        width = np.ones(len(k))
        if self.exact:
            place = np.searchsorted(values, k).clip(0, len(values) - 1)
            low, high = np.concatenate(([0.0], shares))[place], shares[place]
            low = np.where(values[place] == k, low, high)
        elif self.step:
            low, high = np.interp(k - 0.5, values, shares), np.interp(k + 0.5, values, shares)
        else:
            place = (np.searchsorted(values, k, "right") - 1).clip(0, len(values) - 2)
            low, high = shares[place], shares[place + 1]
            width = np.maximum(values[place + 1] - values[place], np.finfo(np.float64).tiny)
            low = np.where((k < values[0]) | (k > values[-1]), high, low)
        ends = torch.from_numpy(np.stack((low, high)).clip(EDGE, 1 - EDGE))
        return np.stack((*torch.special.ndtri(ends).numpy(), width), 1)

    # -- decode ----------------------------------------------------------------------------------------------------

    def decode(self, z: Numbers | None, symbols: NDArray[np.int64]) -> Column:
        """The values behind z (N,) and symbols (N, len(states)): the inverse of `encode`."""
        if z is None:
            place = [self.states[0] ** i for i in reversed(range(len(self.states)))]
            index = (symbols * place).sum(1).clip(0, len(self.levels) + self.missing - 1)
            present = index < len(self.levels)
            levels = values_of(self.levels or ("0",), self.type)
            return Column(levels[np.where(present, index, 0)], present)
        symbol = symbols[:, 0] if self.states else np.zeros(len(z), np.int64)
        present = symbol <= len(self.atoms)
        k = np.where(symbol == 0, self._quantile(z), np.array([0.0, *self.atoms])[np.where(present, symbol, 0)])
        return Column(self._value(k), present)

    def _quantile(self, z: Numbers) -> Numbers:
        u, values, shares = (
            torch.special.ndtr(torch.from_numpy(z)).numpy(),
            np.array(self.values),
            np.array(self.shares),
        )
        if self.exact:
            return np.asarray(values[np.searchsorted(shares, u, "right").clip(0, len(values) - 1)])
        found = np.interp(u, shares, values)
        return np.rint(found).clip(np.ceil(values[0]), np.floor(values[-1])) if self.step else found

    def _value(self, k: Numbers) -> np.ndarray:
        """(origin + step k) / 10^decimals, correctly rounded, as dates and whole numbers int64."""
        floating = _FLOATS.get(self.type)
        if not self.step:
            return k if floating is None else k.astype(floating).astype(np.float64)
        whole = int(self.origin) + int(self.step) * np.rint(k).astype(np.int64)
        return whole if floating is None else (whole / 10.0**self.decimals).astype(floating).astype(np.float64)

    # -- words and files -------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """In words: category of 5 levels; number, decimals 2, 273 different values."""
        if not self.fillable:
            return "always empty"
        empty = ", may be missing" if self.missing else ""
        if not self.numeric:
            shown = [repr(level) if "," in level else level for level in self.levels[:6]]
            few = f" ({', '.join(shown)})" if 0 < len(self.levels) <= 6 else ""
            return f"category of {counted(len(self.levels), 'level')}{few}{empty}"
        if not self.step:
            grid = "continuous"
        elif self.type in _FLOATS:
            grid = f"in steps of {self.step / 10.0**self.decimals:g}"
        else:
            grid = f"{'dates' if is_date(self.type) else 'whole'}, in steps of {self.step:g}"
        atoms = f", {counted(len(self.atoms), 'frequent value')} apart" if self.atoms else ""
        return f"number, {grid}{atoms}{empty}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; what is at its default is left out."""
        usual = {field.name: field.default for field in fields(self)}
        own = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Field:
        """The inverse of `to_dict`; the data passed `SCHEMA`."""
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**plain)


SCHEMA = schema.fields(
    {name: schema.text for name in ("name", "kind", "type")},
    {
        **{name: schema.text for name in ("dtype", "origin")},
        **{name: schema.flag for name in ("missing", "ordered", "dictionary", "exact")},
        "levels": schema.listed(schema.text), "step": schema.number(0), "decimals": schema.whole(0, DECIMALS),
        "values": schema.listed(schema.number(), 1), "shares": schema.listed(schema.number(0, 1), 1),
        "atoms": schema.listed(schema.number(), 1),
    },
    rest=None,
)  # fmt: skip


def is_date(kind: str) -> bool:
    return kind.startswith(("date", "timestamp"))


def date_unit(kind: str) -> str:
    """The unit of a type of dates: D, s, ms, us or ns."""
    return "D" if kind.startswith("date32") else re.split(r"[\[,\]]", kind)[1]


def texts(values: np.ndarray, kind: str) -> list[str]:
    """Values as text, which `values_of` reads."""
    if kind == "bool":
        return ["true" if value else "false" for value in values.tolist()]
    return [value if isinstance(value, str) else repr(value) for value in values.tolist()]


def values_of(levels: tuple[str, ...], kind: str) -> np.ndarray:
    """Text as values of a type: bool, float64, int64 (dates too), or objects."""
    if kind in ("string", "large_string"):
        return np.array([*levels, None], object)[:-1]
    if kind == "bool":
        return np.array([level == "true" for level in levels])
    try:
        return np.array([float(level) for level in levels]) if kind in _FLOATS else np.array(list(map(int, levels)))
    except ValueError:
        raise SfumatoError(f"the levels of a table's column are no values of the type {kind}") from None


# -- inference --------------------------------------------------------------------------------------------------------


def fit(column: Column, kind: str | None, **own: Any) -> Field | str:
    """The field of a column, or why it is left out. kind: as asked; None: inferred. own: name, type, dtype, levels."""
    values, count = column.given, len(column.given)
    own = {**own, "missing": bool(column.missing)}
    if own.get("dictionary") or values.dtype == object or own["type"] == "bool" or not count:
        if kind == "number":
            raise SfumatoError(f"the column {own['name']!r} holds no numbers, and cannot be of the kind number")
        known = own.pop("levels", None) or sorted(set(texts(values, own["type"])))
        if kind is None and values.dtype == object and len(known) == count > FEW:
            return "each of its texts occurs once"
        return Field(kind="category", levels=tuple(known), **own)
    if not np.isfinite(values.astype(np.float64)).all():
        raise SfumatoError(f"the column {own['name']!r} holds infinite values: correct them, or leave the cells empty")
    distinct = np.unique(values)
    if kind is None and values.dtype.kind == "i" and len(distinct) == count > FEW and (np.diff(values) == 1).all():
        return "it counts the rows"
    if kind == "category" or (kind is None and len(distinct) <= max(2, min(FEW, count // REPEATED))):
        return Field(kind="category", levels=tuple(texts(distinct, own["type"])), **own)
    return _number(values, distinct, own)


def _number(values: np.ndarray, distinct: np.ndarray, own: dict[str, Any]) -> Field:
    decimals = _decimals(distinct, own["type"])
    grid: dict[str, Any] = {}
    if decimals is not None:
        floating = distinct.dtype.kind == "f"
        whole = np.rint(distinct * 10.0**decimals).astype(np.int64) if floating else distinct
        span = int(whole[-1]) - int(whole[0])
        step = int(np.gcd.reduce(np.diff(whole))) if 0 < span < 2**62 else 1
        if span // step < LARGEST:
            grid = {"origin": str(int(whole[0])), "step": float(step), "decimals": decimals}
        elif not floating:
            raise SfumatoError(
                f"the column {own['name']!r} spans more than 2^53 whole numbers: make it a category, or leave it out"
            )
    own = {**own, **grid}
    k = np.sort(Field(kind="number", values=(0.0,), shares=(1.0,), **own)._k(values))
    found, counts = np.unique(k, return_counts=True)
    if len(found) <= min(STORED, len(k) // REPEATED) or len(found) == 1:
        shares = counts.cumsum() / len(k)
        return Field(kind="number", values=tuple(found.tolist()), shares=tuple(shares.tolist()), exact=True, **own)
    atoms = found[counts >= max(LEAST_ATOM, ATOM * len(k))]
    rest = k[~np.isin(k, atoms)]
    return _quantiles(rest, tuple(atoms.tolist()), own)


def _quantiles(k: Numbers, atoms: tuple[float, ...], own: dict[str, Any]) -> Field:
    """A field with the quantiles of k, each spread over its cell of a grid."""
    if own.get("step"):
        k = np.sort(k + np.random.default_rng(0).uniform(-0.5, 0.5, len(k)))
        k[0], k[-1] = np.rint(k[0]) - 0.5, np.rint(k[-1]) + 0.5
    shares = np.linspace(0, 1, min(STORED, max(2, len(k))))
    values = np.maximum.accumulate(np.quantile(k, shares))
    made: dict[str, Any] = {"values": tuple(values.tolist()), "shares": tuple(shares.tolist()), "atoms": atoms}
    return Field(kind="number", **made, **own)


def _decimals(distinct: np.ndarray, kind: str) -> int | None:
    """The fewest decimals that write all values, None for more than 9 or for large numbers."""
    if distinct.dtype.kind != "f":
        return 0
    dtype, largest = _FLOATS[kind], float(np.abs(distinct).max())
    for decimals in range(DECIMALS + 1):
        if largest * 10.0**decimals >= LARGEST:
            return None
        whole = np.rint(distinct * 10.0**decimals)
        if ((whole / 10.0**decimals).astype(dtype) == distinct.astype(dtype)).all():
            return decimals
    return None
