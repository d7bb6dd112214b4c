"""Measures of tables, of their values as a user reads them: columns, pairs of columns, whole rows, and what they teach.

    total-variation    mean over categories of 1/2 sum_k |p_k - q_k|; an empty cell is a level, also of a number
    kolmogorov         mean over numbers of sup_v |F_x(v) - F_y(v)|, of cells that are not empty
    association        mean over pairs of columns of |a_x - a_y|; worst-association is the largest
    rows-c2st          the share of rows that boosted trees tell from real ones (`classifier`)
    utility            mean over columns of R2 or accuracy on real rows, of trees that were fitted to these rows
    closer-to-train    the share of samples nearer to the training rows than to as many others (`distances`)
    copies             the share of samples that equal a training row in every cell

a: Pearson's |r| of two numbers, Cramer's V of two categories, the correlation ratio of a number by a category. For all
of them categories are symbols, never quantities. 0 for equal laws, rows-c2st and closer-to-train 1/2; the floor of
utility is that of real rows. A linear classifier finds shuffled columns perfect, and is not offered.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato import noise
from sfumato.data import Source
from sfumato.data.column import Column
from sfumato.data.table_schema import TableSchema
from sfumato.diagnostics.memorization import cells_apart
from sfumato.diagnostics.nearest import Space, nearest
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, fraction
from sfumato.metrics.classifier import boosted, told_apart
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register
from sfumato.sampling import sample

Numbers = NDArray[np.float64]
BOOSTED = 255  # most levels that trees take as symbols
_PAIRS = 300  # most pairs of columns, spread over all
_DRAWN = 2000  # most samples that are compared with every training row


class Rows:
    """Rows of a table as arrays: numbers (N, n), NaN where empty, and levels (N, m) of categories and empty cells.

    x: vectors (N, D), or the columns themselves.
    """

    def __init__(self, table: TableSchema, x: Tensor | Mapping[str, Column]) -> None:
        columns = table.decode(x) if isinstance(x, Tensor) else x
        self.table, self.numbers, self.levels = table, {}, {}
        for field in table.fields:
            column = columns[field.name]
            if field.numeric:
                values = column.values.astype(np.float64)
                self.numbers[field.name] = np.where(column.present, values, np.nan)
                if field.missing:
                    self.levels[f"{field.name} is empty"] = (~column.present).astype(np.int64)
            else:
                self.levels[field.name] = field.index(column)

    def __len__(self) -> int:
        return len(next(iter((*self.numbers.values(), *self.levels.values()))))

    def matrix(self, without: str = "") -> tuple[Numbers, list[bool]]:
        """(rows for trees, which columns are symbols), but for one column."""
        every = {**self.numbers, **self.levels}
        names = [name for name in every if name not in (without, f"{without} is empty")]
        symbols = [name in self.levels and int(self.levels[name].max(initial=0)) < BOOSTED for name in names]
        return np.stack([every[name].astype(np.float64) for name in names], 1), symbols


def _needs(any_of_it: Any, what: str, kind: str) -> None:
    if not any_of_it:
        raise SfumatoError(f"{what} is of {kind}, and this table has none: leave it out.")


@register("metric", "total-variation")
@dataclasses.dataclass(frozen=True)
class TotalVariation:
    """The mean total variation of the categories, and of whether cells are empty."""

    space: ClassVar[str] = "rows"

    def __call__(self, x: Rows, y: Rows) -> Interval:
        _needs(x.levels, "total-variation", "categories")

        def distance(i: Tensor, j: Tensor) -> float:
            each = []
            for name in x.levels:
                a, b = x.levels[name][i.numpy()], y.levels[name][j.numpy()]
                size = 1 + max(a.max(), b.max())
                p, q = (np.bincount(level, minlength=size) / len(level) for level in (a, b))
                each.append(0.5 * np.abs(p - q).sum())
            return float(np.mean(each))

        return jackknife(distance, len(x), len(y), most=1.0)


@register("metric", "kolmogorov")
@dataclasses.dataclass(frozen=True)
class Kolmogorov:
    """The mean Kolmogorov-Smirnov distance of the numbers, dates as numbers."""

    space: ClassVar[str] = "rows"

    def __call__(self, x: Rows, y: Rows) -> Interval:
        _needs(x.numbers, "kolmogorov", "numbers")

        def distance(i: Tensor, j: Tensor) -> float:
            each = [largest_gap(x.numbers[name][i.numpy()], y.numbers[name][j.numpy()]) for name in x.numbers]
            return float(np.mean(each))

        return jackknife(distance, len(x), len(y), most=1.0)


def largest_gap(a: Numbers, b: Numbers) -> float:
    """sup |F_a - F_b| of the values that are there; 1 if one side has none, 0 if both have none."""
    a, b = np.sort(a[~np.isnan(a)]), np.sort(b[~np.isnan(b)])
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    at = np.concatenate((a, b))
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


@register("metric", "association")
@register("metric", "worst-association", worst=True)
@dataclasses.dataclass(frozen=True)
class Association:
    """The mean, or largest, difference of the association of two columns, over at most 300 pairs of a wide table."""

    worst: bool = False
    space: ClassVar[str] = "rows"

    def __call__(self, x: Rows, y: Rows) -> Interval:
        pairs = list(itertools.combinations((*x.numbers, *x.levels), 2))
        _needs(pairs, "association", "pairs of columns")
        pairs = [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, _PAIRS).round().astype(int))]

        def distance(i: Tensor, j: Tensor) -> float:
            gaps = [abs(associated(x, *pair, i.numpy()) - associated(y, *pair, j.numpy())) for pair in pairs]
            return float(max(gaps) if self.worst else np.mean(gaps))

        return jackknife(distance, len(x), len(y), most=1.0)


def associated(rows: Rows, first: str, second: str, chosen: NDArray[np.int64]) -> float:
    """Pearson's |r|, the correlation ratio, or Cramer's V of two columns, in [0, 1]; 0 where one is constant."""
    both = [{**rows.numbers, **rows.levels}[name][chosen] for name in (first, second)]
    if first not in rows.numbers and second not in rows.numbers:
        return cramer(*both)
    there = ~np.isnan(both[0]) & ~np.isnan(both[1])
    a, b = both[0][there], both[1][there]
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return 0.0
    if first in rows.numbers and second in rows.numbers:
        return abs(float(np.corrcoef(a, b)[0, 1]))
    number, level = (a, b) if first in rows.numbers else (b, a)
    counts, sums = np.bincount(level), np.bincount(level, number - number.mean())
    between = (sums[counts > 0] ** 2 / counts[counts > 0]).sum()
    return float(np.sqrt(between / ((number - number.mean()) ** 2).sum()))


def cramer(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """sqrt(chi^2 / (n (min(r, c) - 1))) of the table of counts."""
    a, b = (np.unique(each, return_inverse=True)[1] for each in (a, b))
    shape = (int(a.max(initial=0)) + 1, int(b.max(initial=0)) + 1)
    if min(shape) < 2:
        return 0.0
    counts = np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    return float(np.sqrt(((counts - expected) ** 2 / expected).sum() / counts.sum() / (min(shape) - 1)))


@register("metric", "rows-c2st")
@dataclasses.dataclass(frozen=True)
class RowsC2ST:
    """The accuracy of gradient-boosted trees on rows, cross-fitted in `folds` (needs scikit-learn)."""

    folds: int = 5
    trees: int = 100
    seed: int = 0
    space: ClassVar[str] = "rows"

    def __call__(self, x: Rows, y: Rows) -> Interval:
        (ours, symbols), (real, others) = x.matrix(), y.matrix()
        both = [a and b for a, b in zip(symbols, others, strict=True)]
        return told_apart(ours, real, self.folds, self.trees, self.seed, both)


@register("metric", "utility")
@dataclasses.dataclass(frozen=True)
class Utility:
    """The mean over columns of R2 (of numbers) or accuracy (of categories) on real rows, of boosted trees that predict
    a column from all others and were fitted to these rows; column: that one alone (needs scikit-learn)."""

    column: str = ""
    most: int = 10
    space: ClassVar[str] = "rows"

    def __call__(self, x: Rows, y: Rows) -> Interval:
        every = [name for name in (*x.numbers, *x.levels) if not name.endswith(" is empty")]
        if self.column and self.column not in every:
            raise SfumatoError(
                f"utility is of a column of the table, and {self.column!r} is none of {', '.join(every)}."
            )
        if len(every) < 2:
            raise SfumatoError("utility predicts a column from others, and this table has one: leave it out.")
        found = [_taught(x, y, name) for name in ([self.column] if self.column else every[: self.most])]

        def score(i: Tensor, j: Tensor) -> float:
            return float(np.mean([max(0.0, each(j.numpy())) for each in found]))

        return jackknife(score, len(x), len(y), most=1.0)


def _taught(x: Rows, y: Rows, name: str) -> Callable[[NDArray[np.int64]], float]:
    """The score on some rows of y of trees that were fitted to x."""
    (given, symbols), (asked, _) = x.matrix(name), y.matrix(name)
    numeric = name in x.numbers
    target, truth = ({**rows.numbers, **rows.levels}[name] for rows in (x, y))
    there = ~np.isnan(target) if numeric else np.ones(len(target), bool)
    if len(np.unique(target[there])) < 2:
        guess = np.full(len(truth), target[there].mean() if there.any() else 0.0)
    else:
        guess = boosted(numeric, 100, 0, symbols).fit(given[there], target[there]).predict(asked)

    def score(rows: NDArray[np.int64]) -> float:
        own, said = truth[rows], guess[rows]
        if not numeric:
            return float((own == said).mean())
        known = ~np.isnan(own)
        spread = ((own[known] - own[known].mean()) ** 2).sum() if known.any() else 0.0
        return float(1 - ((own - said)[known] ** 2).sum() / spread) if spread > 0 else 0.0

    return score


@register("metric", "closer-to-train")
@dataclasses.dataclass(frozen=True)
class CloserToTrain:
    """The share of new samples that are closer to a training row than to any of as many held-out rows: 1/2 if nothing
    is memorised. Numbers by their normal scores, and 1 for each category that differs."""

    seed: int = 0
    space: ClassVar[str] = "model"

    def __call__(self, model: Any, source: Source, train: Tensor, held: Tensor) -> Interval:
        n = min(_held_out(source, train, held), len(train))
        space = Space(None, lambda x: cells_apart(source.table, x))
        made, near = space(_drawn(model, min(n, _DRAWN), self.seed)), []
        for rows in (train, held):
            chosen = rows[noise.permutation(self.seed, 1, len(rows))[:n]].sort().values
            near.append(nearest(made, source.x, chosen, space).first)
        share = float(((near[0] < near[1]).double() + (near[0] == near[1]).double() / 2).mean())
        return fraction(share, len(made) / 2)  # of each side's nearest rows, many are shared


@register("metric", "copies")
@dataclasses.dataclass(frozen=True)
class Copies:
    """The share of new samples that equal a training row in every cell; rows of few categories often do by chance."""

    seed: int = 0
    space: ClassVar[str] = "model"

    def __call__(self, model: Any, source: Source, train: Tensor, held: Tensor) -> Interval:
        made = cells_apart(source.table, _drawn(model, min(len(train), _DRAWN), self.seed)).numpy()
        known = {
            row.tobytes() for part in train.split(4096) for row in cells_apart(source.table, source.x[part]).numpy()
        }
        return fraction(float(np.mean([row.tobytes() in known for row in made])), len(made))


def _held_out(source: Source, train: Tensor, held: Tensor) -> int:
    """The number of held-out rows. Raises SfumatoError without any."""
    if torch.equal(train, held):
        raise SfumatoError(
            f"{source.name} is not what the model was trained on with a hold-out: leave this metric out."
        )
    return len(held)


def _drawn(model: Any, n: int, seed: int) -> Tensor:
    """n new rows of the table, as vectors."""
    z = sample(model, n, seed=seed, normalised=True)
    rows: Tensor = model.spec.denormalise(model.process.table(z))
    return rows
