"""Real data in two halves: n samples to compare with, and n more whose score in the place of a model's is the floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, final

import torch
from torch import Tensor

from sfumato import features as named
from sfumato import noise
from sfumato.data import Source
from sfumato.data.lengths import in_order, with_mask
from sfumato.data.spec import declared_bounds, figures_of
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.tables import Rows
from sfumato.normaliser import Normaliser

PREPARED = {
    "features": "none", "numbers": "each channel over its deviation", "fields": "each channel over its deviation",
    "texts": "decoded windows", "rows": "decoded columns",
}  # fmt: skip
WORDS = {"texts": "texts", "rows": "rows of a table"}  # spaces of other data than numbers
_BLOCK = 256  # samples that are normalised at once, in float64
ORDER = 0  # the seed of the choice of rows: the same halves for every seed of samples


@final
class Reference:
    """The two halves, chosen among `rows` of a source, and what measures make of them, computed once.

    features: a name, a file of weights, a module or function x (n, *shape) in the units of the data -> (n, F), or None
    for the usual ones. device: where they are computed.
    unordered: whether samples are sets of points, whose order says nothing.
    rest: the rows of the first half. Of text, `real` has all rows beside the rest, as more text knows more words.
    """

    def __init__(
        self, source: Source, rows: Tensor, n: int, features: Any = None, device: str | torch.device = "cpu",
        unordered: bool = False,
    ) -> None:  # fmt: skip
        if n < 2 or 2 * n > len(rows):
            raise SfumatoError(
                f"{source.name} has {len(rows):,} samples to compare with, and two halves of {n:,} need {2 * n:,} "
                "(at least 4): choose fewer (-n), or other rows (--part)."
            )
        if source.layout and any(source.missing):
            raise SfumatoError(f"{source.name} has sequences with missing steps, and metrics compare whole sequences.")
        if unordered and len(source.shape) != 2:
            raise SfumatoError(
                f"{source.name} has samples of shape {source.shape}, which are no sets of points (C, L)."
            )
        rows = rows[noise.permutation(ORDER, 0, len(rows))]
        self.source, self.n, self.unordered = source, n, unordered
        self.rest, self.real = rows[:n], rows[n:] if source.text is not None else rows[n : 2 * n]
        self._word = named.usual(source.kind, source.shape) if features is None else features
        self._features = named.build(self._word, source.shape, bounds(source), device)
        self._spaces: dict[str, tuple[Any, Any]] = {}
        self._floors: dict[str, Interval] = {}
        if source.text is None:
            self._normaliser = Normaliser.of(figures_of(source, torch.cat((self.rest, self.real))))
        self._digest = digest(source, torch.cat((self.rest, self.real)))

    def measure(self, metric: Any, samples: Any) -> tuple[Interval, Interval]:
        """(value, floor) of samples, a tensor (n, *shape) in the units of the data, or texts."""
        space, key = metric.space, described(metric)
        kind = "texts" if self.source.text is not None else "rows" if self.source.table is not None else "numbers"
        if (space if space in ("texts", "rows") else "numbers") != kind:
            raise SfumatoError(
                f"{type(metric).__name__} is a metric of {WORDS.get(space, 'numbers')}, and {self.source.name} is of "
                f"{WORDS.get(kind, kind)}: choose another (--metric)."
            )
        network = getattr(metric, "network", None)
        if network is not None and getattr(self._features, "called", None) != network:
            raise SfumatoError(
                f"{metric.name} is a distance of {network} features alone: give the file of their weights "
                "(--features FILE.safetensors or .pth), or take fd or kid."
            )
        if space not in self._spaces:
            self._spaces[space] = self._seen(self._rows(self.real), space), self._seen(self._rows(self.rest), space)
        real, rest = self._spaces[space]
        if key not in self._floors:
            self._floors[key] = metric(rest, real)
        return metric(self._seen(samples, space), real), self._floors[key]

    def protocol(self, metric: Any) -> dict[str, Any]:
        """The fields of a metric's protocol that the real data decide."""
        facts: dict[str, Any] = {"metric": described(metric), "samples": self.n, "real": len(self.real)}
        facts |= {"reference": self.source.name, "reference_hash": self._digest}
        facts |= {"preprocessing": PREPARED.get(metric.space, metric.space)}
        if metric.space == "features":
            facts |= named.identity(self._features, self._word)
            none = PREPARED["numbers" if self._features is None else "features"]
            facts["preprocessing"] = getattr(self._features, "preprocessing", none)
        if metric.space in PREPARED and self.source.text is None and self.source.table is None:
            facts["preprocessing"] += self._prepared()
        return facts

    def _prepared(self) -> str:
        """What else is done with samples that are no plain arrays, in words."""
        ends = "NaN beyond each end (numbers: 0, with the mask)"
        gaps = "values missing as in real samples (numbers: 0, with the mask)"
        done = ends if self.source.layout else gaps if self.source.missing else ""
        sets = "; points ordered by their coordinates" if self.unordered else ""
        return (f"; {done}" if done else "") + sets

    def with_gaps(self, x: Tensor) -> Tensor:
        """Whole samples without the values that those of the first half lack, which is fair where these are missing at
        random; sequences, and samples beside whole data, as they are."""
        if self.source.layout or not self.source.missing:
            return x
        gaps = self.source.x[self.rest].isnan()  # which those of samples lie within, unless they are their own
        return x if bool((x.isnan() & ~gaps).any()) else torch.where(gaps, torch.nan, x)

    def _rows(self, rows: Tensor) -> Any:
        x = self.source.x[rows]
        text = self.source.text
        return x if text is None else [text.decode(each.flatten().tolist()) for each in x]

    def _seen(self, x: Any, space: str) -> Any:
        """Samples as a measure of this space takes them: texts, fields (n, C, *spatial), or rows (n, D)."""
        if space == "texts":
            return x
        if space == "rows":
            assert self.source.table is not None
            return Rows(self.source.table, x)
        if space == "features" and self._features is not None:
            if self.source.missing and isinstance(self._word, str):
                raise SfumatoError(
                    f"{self.source.name} has {self.source.gaps}, of which {self._word} knows nothing: take a metric of "
                    "numbers, or --features numbers."
                )
            found = named.applied(self._features, x)
            return self._in_units(found) if getattr(self._features, "standardised", False) else found
        fields = torch.cat([self._normaliser.normalise(part) for part in x.split(_BLOCK)])
        fields = in_order(fields) if self.unordered else fields
        if space == "fields":
            return fields
        return with_mask(fields) if self.source.missing else fields.flatten(1)

    def _in_units(self, found: Tensor) -> Tensor:
        """Features with mean 0 and deviation 1 over the real half, which is seen first."""
        mean, std = self._spaces.setdefault("units", units(found))
        return (found - mean) / std


def units(found: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of features (n, F), 1 for those without any."""
    std = found.std(0)
    return found.mean(0), torch.where(std > 0, std, 1.0)


def digest(source: Source, rows: Tensor) -> str:
    """The hash of the values of some rows."""
    found = blake2b(digest_size=8)
    for part in rows.split(4096):
        found.update(source.x[part].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def described(metric: Any) -> str:
    """A metric with its settings: KID(), MMD(bandwidth=None)."""
    if dataclasses.is_dataclass(metric):
        return repr(metric)
    return f"{type(metric).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(metric).items())})"


def converted(x: Tensor, given: Source, source: Source) -> Tensor:
    """Samples from files in the units of the reference: pictures are written over the full range of their dtype."""
    if tuple(x.shape[1:]) != source.shape:
        raise SfumatoError(f"{given.name} has samples of shape {tuple(x.shape[1:])}, but {source.name} {source.shape}.")
    ours, real = bounds(given), bounds(source)
    if ours is None or real is None or ours == real:
        return x
    return (x.double() - ours[0]) / (ours[1] - ours[0]) * (real[1] - real[0]) + real[0]


def bounds(source: Source) -> Sequence[float] | None:
    """The declared lowest and highest value, or those that the dtype implies."""
    return source.bounds if source.bounds is not None else declared_bounds(source.x.dtype)
