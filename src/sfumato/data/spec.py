"""DataSpec: the shape, units and conditions of a model's data, so that it takes and returns the user's units.

x = mean + std z per channel; whole numbers are rounded, declared bounds are respected and nothing else is clipped.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import cache, schema
from ..conditions import MISSING, Condition, Conditions, Label, Text, fit, from_config, without_gaps
from ..conditions.real import Real
from ..errors import SfumatoError, SfumatoWarning, an, counted
from ..normaliser import SCHEMA as NORMALISER
from ..normaliser import Normaliser, Statistics
from ..registry import register
from . import lengths, normalising
from .lengths import Lengths
from .row_weights import SCHEMA as WEIGHTS
from .row_weights import RowWeights
from .statistics import GROUP, statistics, unseen
from .table_schema import SCHEMA as TABLE
from .table_schema import TableSchema
from .text import SCHEMA as TOKENISER
from .text import Tokeniser

if TYPE_CHECKING:
    from .column import Column
    from .source import Source

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
    )
}  # fmt: skip
SCALE_TOLERANCE = 0.1  # a batch that varies ten times less than the least varied training samples is in other units
RANGE_TOLERANCE = 10.0  # a value over 10 times further from the mean than any training value is in other units


def declared_bounds(dtype: torch.dtype) -> tuple[float, float] | None:
    """The (lowest, highest) value implied by bool, uint8 and uint16; None for wider and signed types."""
    return {torch.bool: (0.0, 1.0), torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0)}.get(dtype)


_NUMBERS = schema.listed(schema.number(), 1)
_KEYS: dict[str, schema.Check] = {
    "shape": schema.listed(schema.whole(1, 2**31), 1), "dtype": schema.text, "kind": schema.text,
    "bounds": schema.optional(schema.listed(schema.number(), 2, 2)), "normaliser": NORMALISER, "name": schema.text,
    "statistics": schema.fields({f.name: _NUMBERS for f in fields(Statistics)}, rest=None),
}  # fmt: skip
_CONDITIONS = schema.mapping(schema.mapping(schema.anything))
_LATER = {
    "text": schema.optional(TOKENISER), "table": schema.optional(TABLE), "stored": schema.mapping(schema.anything),
    "missing": schema.listed(schema.number(0, 1)), "lengths": schema.optional(lengths.SCHEMA),
    "unseen": schema.listed(schema.whole(0, 2**31)), "weights": schema.optional(WEIGHTS),
}  # fmt: skip
_SPEC = schema.fields({**_KEYS, "conditions": _CONDITIONS}, _LATER, rest=None)
_SPEC_1 = schema.fields({**_KEYS, "classes": schema.listed(schema.text)}, rest=None)


def in_json(value: Any, where: str) -> None:
    """The check of a data spec as JSON (`schema`), of format 1 too."""
    (_SPEC_1 if isinstance(value, Mapping) and "classes" in value else _SPEC)(value, where)


@register("part", "DataSpec")
@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The contract of a data set: sample shape, dtype, units, conditions.

    shape: of one sample, channels first, e.g. (1, 28, 28), (3, 97), (2,).
    dtype: the user's, by name ("uint8", "float32", ...): `denormalise` returns it.
    kind: "image", "array", "text" or "table".
    bounds: (lowest, highest) declared value, or None.
    statistics: of the training split, by channel; `check` compares data with them.
    conditions: the conditions of a sample, by name.
    text: the tokeniser of windows of text, shape (1, L). table: the schema of rows of a table of columns.
    stored: what a file of samples in the format of the training data needs (`Source.stored`).
    missing: the share of missing values, NaN in x, of each channel, in sequences before their ends; () for whole
        samples. The network gets their mask.
    lengths: the law of the lengths of sequences, beyond whose ends values are missing; None for samples of one shape.
    unseen: which values of a flat sample are missing in all of the training; `denormalise` leaves them NaN.
    weights: of rows of a table, by which `sample` accepts them (`calibration`).
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str
    bounds: tuple[float, float] | None
    normaliser: Normaliser
    statistics: Statistics
    conditions: Mapping[str, Condition] = field(default_factory=dict, hash=False)
    name: str = ""
    text: Tokeniser | None = None
    stored: Mapping[str, Any] = field(default_factory=dict, hash=False)
    table: TableSchema | None = None
    missing: tuple[float, ...] = ()
    lengths: Lengths | None = None
    unseen: tuple[int, ...] = ()
    weights: RowWeights | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SfumatoError(f"a data spec's dtype must be one of {', '.join(DTYPES)}, but it is {self.dtype!r}")
        own = "text" if self.text is not None else "table" if self.table is not None else None
        if self.kind != own and (own or self.kind not in ("image", "array")):
            raise SfumatoError(
                "a data spec's kind must be 'image', 'array', with a tokeniser 'text', or with a schema 'table', but "
                f"it is {self.kind!r}"
            )
        if self.table is not None and self.shape != (self.table.numbers + len(self.table.symbols),):
            raise SfumatoError(f"a data spec of shape {self.shape} has another number of columns than its table")
        if self.weights is not None:
            self.weights.require_of(self.table)
        if len(self.missing) not in (0, len(self.normaliser.mean)):
            raise SfumatoError("a data spec needs the share of missing values of each channel, or none")
        if self.unseen and not (self.missing and max(self.unseen) < math.prod(self.shape)):
            raise SfumatoError("a data spec names values that are missing in every sample, and has no such values")
        if self.missing and MISSING in self.conditions:
            raise SfumatoError(f"a condition of data with missing values cannot be called {MISSING!r}: rename it")
        if self.lengths is not None and (
            len(self.shape) != 2 or not self.missing or self.lengths.steps[-1] > self.shape[1]
        ):
            raise SfumatoError(f"a data spec of shape {self.shape} has a law of lengths that is not of its sequences")
        figures = [getattr(self.statistics, f.name) for f in fields(Statistics)]
        if any(len(each) != len(self.normaliser.mean) for each in figures):
            raise SfumatoError(
                f"a data spec needs statistics of {len(self.normaliser.mean)} figures each, one per channel"
            )
        limit = torch.finfo(self.torch_dtype).max if self.torch_dtype.is_floating_point else math.inf
        if self.normaliser.kind == "affine" and any(
            abs(m) + s > limit for m, s in zip(self.normaliser.mean, self.normaliser.std, strict=True)
        ):
            raise SfumatoError(f"a data spec's mean and std are beyond the numbers of its dtype, {self.dtype}")
        if not self.shape or len(self.normaliser.mean) != self.shape[0]:
            raise SfumatoError(
                f"a data spec of shape {self.shape} needs a normaliser of as many channels as its first axis, "
                f"not {len(self.normaliser.mean)}"
            )

    @classmethod
    def fit(cls, source: "Source", indices: Tensor | None = None, normalise: str = "affine") -> "DataSpec":
        """The spec of a source, with the statistics of the samples at `indices` (default: its training split).

        normalise: affine, log, quantile, position, bounded, bounded(low, high) or auto, as `data.normalising` says.
        """
        if indices is None:
            indices = source.split()[0]
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if not len(indices):
            raise SfumatoError(f"{source.name}: there are no samples to compute statistics from")
        figures = figures_of(source, indices)
        conditions = {name: fitted(name, found, indices) for name, found in source.conditions.items()}
        if normalise == normalising.AUTO:
            normalise = normaliser_for(source, indices)
        whole = figures if normalise == "affine" else figures_of(source)
        normaliser = normalising.fit(source, indices, figures, whole, normalise)
        bounds = source.bounds if source.bounds is not None else declared_bounds(DTYPES[source.dtype])
        if bounds is None and normaliser.kind == "bounded" and len(set(normaliser.knots)) == 1:
            bounds = (normaliser.knots[0][0], normaliser.knots[0][1])
        return cls(
            shape=source.shape,
            dtype=source.dtype,
            kind=source.kind,
            bounds=bounds,
            conditions=conditions,
            normaliser=normaliser,
            statistics=figures,
            name=source.name,
            text=source.text,
            stored=source.stored,
            table=source.table,
            missing=source.missing,
            lengths=Lengths.fit(source.x, source.layout, indices) if source.layout else None,
            unseen=unseen(source.x, indices) if source.missing and not source.layout else (),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the condition "label"; a label is an index into them, -1 for none."""
        label = self.conditions.get("label")
        return label.classes if isinstance(label, Label) else ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the user's data."""
        return DTYPES[self.dtype]

    @property
    def discrete(self) -> bool:
        """Whether the data are whole numbers."""
        return not self.torch_dtype.is_floating_point

    def log_jacobian(self, z: Tensor) -> Tensor:
        """log |dz/dx| at normalised samples z (B, *shape), in nats (B,): log p(x) in user units is log p(z) more."""
        return self.normaliser.log_jacobian(z)

    def normalise(self, x: Tensor | np.ndarray) -> Tensor:
        """x (B, *shape) in user units -> z (B, *shape) float32 with mean 0 and std 1 in each channel."""
        return self.normaliser.normalise(self._batch(x))

    def together(self, x: Any, whole: bool = False) -> Any:
        """Sequences in the user's layout, as `sf.sample` returns them -> (B, *shape), NaN beyond their ends; anything
        else as it is. whole: raise SfumatoError for sequences that end before the last step."""
        if self.lengths is None:
            return x
        x = self.lengths.padded(x, self.shape) if isinstance(x, list | tuple) else torch.as_tensor(x)
        if whole and bool(x.isnan().any()):
            raise SfumatoError(
                f"the batch holds sequences that end before step {self.shape[1]:,}, and this is known only of those "
                "with all steps"
            )
        return x

    def apart(self, z: Tensor, cond: Conditions) -> tuple[Tensor, Conditions]:
        """(normalised samples with 0 for missing values, conditions with their mask); both unchanged for whole data."""
        return without_gaps(z, cond) if self.missing else (z, cond)

    def denormalise(self, z: Tensor) -> Tensor:
        """z (B, *shape) -> x (B, *shape) in the user's units and dtype.

        Integer types are rounded to nearest, and values are clipped to the declared bounds, or without any to the range
        of the dtype.
        """
        z = self._batch(z)
        if z.device.type == "mps":  # MPS has no float64
            z = z.cpu()
        x = self.normaliser.denormalise(z)
        if self.unseen:
            x = x.flatten(1).index_fill(1, torch.tensor(self.unseen, device=x.device), math.nan).view(x.shape)
        return self.rounded(x)

    def inside(self, z: Tensor) -> Tensor:
        """z (B, *shape) cut where its x would be, at the declared bounds; as it is if these have no finite place."""
        if self.bounds is None or self.normaliser.kind not in ("affine", "position"):
            return z
        low, high = (self.normalise(torch.full((1, *self.shape), bound)).to(z) for bound in self.bounds)
        return z.clamp(low, high)

    def rounded(self, x: Tensor) -> Tensor:
        """Real numbers x (B, *shape) in the user's units -> in the user's dtype too, as `denormalise` says."""
        dtype = self.torch_dtype
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        if dtype == torch.bool and not bool(x.isnan().any()):
            return x >= 0.5
        if dtype.is_floating_point:
            return x.to(dtype)
        if bool((gaps := x.isnan()).any()):  # which whole numbers have no place for
            return self.rounded(x.nan_to_num()).to(x.dtype).masked_fill(gaps, math.nan)
        limits = torch.iinfo(dtype)
        # float64 cannot hold 2^63 - 1: it rounds up to 2^63, which wraps around to the most negative int64
        top = math.nextafter(2.0**63, 0) if dtype == torch.int64 else limits.max
        return x.round().clamp(limits.min, top).to(dtype)

    def check(self, x: Tensor | np.ndarray, whole: bool = True) -> None:
        """Raise SfumatoError, with the offending figures, if x (B, *shape) cannot be data of this spec.

        whole: whether missing values, NaN, are an error too.
        That is: another shape; NaN or inf; values outside the declared bounds; fractions in whole-number data; values
        ten times further from the mean than any in training; samples that vary ten times less than any in training
        (other units, such as x / 255). Samples of one value a channel are compared in batches of eight or more, with a
        `SfumatoWarning` instead if they lie in the range of the training data, as those of one class may.
        """
        x = self._batch(self.together(x, whole)).to(torch.float64)
        if not len(x):
            raise SfumatoError("the batch is empty")
        wrong = ~x.isfinite() if whole else x.isinf()
        if wrong.any():
            raise SfumatoError(
                f"the batch holds {counted(int(wrong.sum()), 'value that is', 'values that are')} NaN or infinite"
            )
        fractions = self.discrete and bool((x[~x.isnan()] != x[~x.isnan()].round()).any())
        complete = ~x.isnan().flatten(1).any(1)
        x = torch.where(x.isnan(), torch.tensor(self.statistics.mean).view(-1, *(1,) * (x.ndim - 2)), x)
        low, high = float(x.min()), float(x.max())
        if self.bounds is not None and not self.bounds[0] <= low <= high <= self.bounds[1]:
            raise SfumatoError(
                f"values run from {low:g} to {high:g}, outside the declared {self._bounds_text()}: "
                "give the data in the units of the training data"
            )
        if fractions:
            raise SfumatoError(
                f"the training data are whole numbers ({self.dtype}, {self._bounds_text()}), but this batch has "
                f"fractions between {low:g} and {high:g}: give it in the units of the training data, not rescaled"
            )
        self._check_range(x)
        if bool(complete.any()):  # filled samples vary less
            self._check_scale(x[complete])

    def _check_range(self, x: Tensor) -> None:
        figures = self.statistics
        mean, low, high = (torch.tensor(v, dtype=torch.float64) for v in (figures.mean, figures.low, figures.high))
        reach = RANGE_TOLERANCE * torch.maximum(high - mean, mean - low)
        furthest = (x.transpose(0, 1).reshape(x.shape[1], -1) - mean[:, None]).abs().amax(1)
        wrong = torch.nonzero((furthest > reach) & (high > low))  # a constant channel has no scale
        if len(wrong):
            c = int(wrong[0])
            raise SfumatoError(
                f"channel {c} has values {float(furthest[c]):g} away from the training mean {figures.mean[c]:g}, but "
                f"training values ran from {figures.low[c]:g} to {figures.high[c]:g}: give the data in those units"
            )

    def _check_scale(self, x: Tensor) -> None:
        """The least variation: within one sample where samples have several values a channel, else of a batch, where
        little of it may also be that of one class: in the range of the training data this is a warning. Channels that
        are left as they are hold symbols, which have no scale."""
        figures, flat = self.statistics, x.transpose(0, 1).reshape(x.shape[1], -1)
        std = flat.std(1, correction=0)
        one, several, low, high = (
            torch.tensor(v, dtype=torch.float64)
            for v in (figures.quiet_sample, figures.quiet, figures.low, figures.high)
        )
        quiet = one if bool((one > 0).any()) else several if len(x) >= GROUP else one
        own = self.normaliser.kind == "affine"
        plain = [own and pair == (0.0, 1.0) for pair in zip(self.normaliser.mean, self.normaliser.std, strict=True)]
        known = (quiet > 0) & ~torch.tensor(plain)
        if not known.any() or not bool((std < SCALE_TOLERANCE * quiet)[known].all()):
            return
        c = int(torch.nonzero(known)[0])
        found = (
            f"channel {c} of the batch has mean {float(flat[c].mean()):g} and std {float(std[c]):g}, but the training "
            f"data have mean {figures.mean[c]:g} and std {figures.std[c]:g}"
        )
        inside = (flat >= low[:, None]) & (flat <= high[:, None])
        if quiet is several and bool(inside.all()):
            warnings.warn(f"{found}: are these data of one kind, or in other units?", SfumatoWarning, stacklevel=4)
            return
        raise SfumatoError(f"{found}: give the data in the units of the training data, not rescaled")

    def _batch(self, x: Tensor | np.ndarray) -> Tensor:
        x = self.together(x)
        try:
            x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
        except (TypeError, ValueError):
            raise SfumatoError(f"a batch is numbers (B, ...), not {an(type(x).__name__)}") from None
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1:
            raise SfumatoError(
                f"a batch must have shape (B, {', '.join(map(str, self.shape))}), but it has {tuple(x.shape)}"
            )
        return x

    @property
    def whole_texts(self) -> bool:
        """Whether samples are whole texts, filled up behind their end by one number more than the tokeniser has."""
        return self.text is not None and self.bounds is not None and self.bounds[1] >= self.text.size

    def _bounds_text(self) -> str:
        return "no bounds" if self.bounds is None else f"{self.bounds[0]:g} to {self.bounds[1]:g}"

    def describe(self) -> list[str]:
        """The spec in words, one sentence per line."""
        size = " x ".join(map(str, self.shape))
        if self.text is not None:
            what = "texts of up to" if self.whole_texts else "windows of"
            return [f"text {self.name!r}: {what} {self.shape[1]:,} symbols, {self.text.describe()}."]
        if self.table is not None:
            lines = [f"table {self.name!r} of {counted(len(self.table.fields), 'column')}.", *self.table.describe()]
            weighted = "rows are accepted by weights, so that they are nearer to the training rows."
            return lines if self.weights is None else [*lines, weighted]
        size = size if self.lengths is None else self.lengths.describe(self.shape[0])
        lines = [f"{self.kind} data {self.name!r}: {size} of {self.dtype}, {self._bounds_text()}."]
        if self.normaliser.kind != "affine":
            lines.append(f"Normalised by {self.normaliser.kind}.")
        plain = self.normaliser if self.normaliser.kind == "affine" else self.statistics
        for c, (m, s) in enumerate(zip(plain.mean, plain.std, strict=True)):
            if c == 8:
                lines.append(f"... and {len(self.normaliser.mean) - 8} more channels.")
                break
            constant = " (constant)" if self.statistics.low[c] == self.statistics.high[c] else f", std {s:.6g}"
            lines.append(f"channel {c}: mean {m:.6g}{constant}.")
        lines += missing_words(self.missing)
        if self.unseen:
            every = f"{len(self.unseen):,} of the {math.prod(self.shape):,} values"
            lines.append(f"{every} are missing in all of the training: samples have NaN there.")
        if self.classes:
            shown = ", ".join(self.classes[:20]) + (" ..." if len(self.classes) > 20 else "")
            lines.append(f"{counted(len(self.classes), 'class', 'classes')}: {shown}.")
        others = {name: each for name, each in self.conditions.items() if name != "label" or not self.classes}
        lines += [f"condition {name}: {each.describe()}." for name, each in others.items()]
        return lines if self.conditions else [*lines, "no classes."]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `from_dict` gives back an equal spec."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "kind": self.kind,
            "bounds": None if self.bounds is None else list(self.bounds),
            "conditions": {name: condition.config() for name, condition in self.conditions.items()},
            "normaliser": self.normaliser.to_dict(),
            "statistics": {f.name: list(getattr(self.statistics, f.name)) for f in fields(Statistics)},
            "name": self.name,
            **({} if self.text is None else {"text": self.text.to_dict()}),
            **({"stored": dict(self.stored)} if self.stored else {}),
            **({} if self.table is None else {"table": self.table.to_dict()}),
            **({"missing": list(self.missing)} if self.missing else {}),
            **({} if self.lengths is None else {"lengths": self.lengths.to_dict()}),
            **({"unseen": list(self.unseen)} if self.unseen else {}),
            **({} if self.weights is None else {"weights": self.weights.to_dict()}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DataSpec":
        """The inverse of `to_dict`; also reads format 1. Raises SfumatoError, which names the key."""
        schema.require(data, in_json, "a data spec")
        if "classes" in data:  # of format 1
            label = {"label": Label(tuple(data["classes"])).config()} if data["classes"] else {}
            data = {name: value for name, value in data.items() if name != "classes"} | {"conditions": label}
        none = dict.fromkeys(("text", "table", "lengths", "weights"))
        data = {**none, "stored": {}, "missing": (), "unseen": (), **data}
        bounds = data["bounds"]
        return cls(
            shape=tuple(data["shape"]),
            dtype=data["dtype"],
            kind=data["kind"],
            bounds=None if bounds is None else (float(bounds[0]), float(bounds[1])),
            conditions={str(name): from_config(each) for name, each in data["conditions"].items()},
            normaliser=Normaliser.from_dict(data["normaliser"]),
            statistics=_figures(data["statistics"]),
            name=data["name"],
            text=None if data["text"] is None else Tokeniser.from_dict(data["text"]),
            stored=dict(data["stored"]),
            table=None if data["table"] is None else TableSchema.from_dict(data["table"]),
            missing=tuple(map(float, data["missing"])),
            lengths=None if data["lengths"] is None else Lengths.from_dict(data["lengths"]),
            unseen=tuple(data["unseen"]),
            weights=None if data["weights"] is None else RowWeights.from_dict(data["weights"]),
        )


def missing_words(share: Sequence[float]) -> list[str]:
    """What is said of missing values, if there are any. share: of each channel."""
    if not any(share):
        return []
    low, high, mean = (f"{100 * each:.3g} %" for each in (min(share), max(share), sum(share) / len(share)))
    apart = "" if low == high else f" (by channel {low} to {high})"
    return [f"{mean} of the values are missing{apart}: the loss skips them, and samples are whole."]


def fitted(name: str, column: "Column", rows: Tensor) -> Condition:
    """The condition that a column declares: classes and range of all its values; mean and std, or texts, of `rows`."""
    if column.names is not None and column.kind in ("", Label.kind):
        return Label(column.names)
    chosen = column.take(rows)
    try:
        whole = fit(column.spelt, column.kind)
        if isinstance(whole, Text):
            return whole.after(chosen.spelt)
        if not isinstance(whole, Real) or not chosen.present.any():
            return whole
        trained = fit(chosen.spelt, whole.kind)
    except SfumatoError as why:
        raise SfumatoError(f"the condition {name!r}: {why}") from None
    assert isinstance(trained, Real)
    return replace(trained, low=whole.low, high=whole.high)


def figures_of(source: "Source", indices: Tensor | None = None) -> Statistics:
    """Statistics of these samples, or of all; cached for a source with an identity."""
    key = None
    if source.identity is not None:
        chosen = None if indices is None else blake2b(indices.numpy().tobytes()).hexdigest()
        key = cache.identity(["statistics", source.identity, chosen])
    return _figures(cache.remembered(key, lambda: asdict(statistics(source.x, indices))))


def normaliser_for(source: "Source", indices: Tensor) -> str:
    """The normaliser that suits the samples at `indices` of a source (`normalising.chosen`)."""
    return normalising.chosen(source, indices, lambda: min(figures_of(source).low))


def _figures(data: Mapping[str, Any]) -> Statistics:
    return Statistics(**{name: tuple(map(float, values)) for name, values in data.items()})
