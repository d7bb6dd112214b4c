"""Whether a model repeats its training samples: nearest-neighbour distances, compared with those of new samples.

    r(x) = d(x, train) / d(x, hold-out),   d: distance to the nearest,   for samples s of the model and for twins
    twin: a training sample, compared with the training set without its own group, for which it is a new sample
    ratio = median r(s) / median r(twin),   closer = P(r(s) < r(twin)),   copies: d to the nearest < 1/3 of the second

New samples from the data's law are exchangeable with twins, up to one row in N: ratio 1, closer 1/2, and as many copies
as among the data. Dividing by the distance to the hold-out cancels sharpness: a blurred sample is close to everything.
Both sets enter the two sides alike, so their sizes need no correction. The usual comparison, with a subset of the
training set as small as the hold-out, would miss most copied samples. The copy criterion is that of Yoon et al. 2023
("Diffusion probabilistic models generalize when they fail to memorize") and Gu et al. 2023 (2310.02664).
"""

from __future__ import annotations

import dataclasses
import math
import os
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import data, noise, serialization
from sfumato.conditions import of_data
from sfumato.coupling_flow import CouplingFlow
from sfumato.data import Source
from sfumato.data.lengths import Lengths
from sfumato.data.opening import lengthened
from sfumato.data.rows import Samples
from sfumato.diagnostics.nearest import Features, Near, Space, nearest
from sfumato.diagnostics.sentences import copies_words
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, counted, whole
from sfumato.guidance import guide
from sfumato.intervals import Interval, fraction
from sfumato.machine import default_cpu
from sfumato.model import unordered
from sfumato.pictures import picture
from sfumato.process import Spectral
from sfumato.sampling import STATELESS, sample
from sfumato.solver_selection import AnySolver

_CERTAIN, _LIKELY = 3.0902323061678132, 2.3263478740408408  # normal quantiles of 99.9 and 99 %
_THIRD = 1 / 3
_RESAMPLED = 400
_STEPS = 10
_OF_CELLS = "the columns of a row, numbers as normal scores, categories equal or apart"
_FEW = 8  # held-out samples below which the comparison is weak


@dataclasses.dataclass(frozen=True)
class Memorization:
    """How close a model's samples are to its training set.

    ratio, closer: with 95 % intervals; 1 and 1/2 if nothing is memorised. copies, copies_real: fractions of the samples
    and of the twins. exact: samples that equal a training sample bit for bit; leaked: held-out samples that do;
    repeated: training samples that equal one of another group; chance: whether equal samples may be chance, as rows of
    a table are: held-out ones then count as leaked into training only where they are more than repeated ones suggest.
    samples, twins, train, holdout: their numbers; pairs: the number of independent comparisons behind `closer`;
    searched: the number of training samples searched. nearest: (number of the sample, row of the data, r over the
    twins' median) of the samples closest to a training sample; shown: these samples and their neighbours, in the units
    of the data. space: where distances are measured. notes: remarks, in sentences.
    """

    ratio: Interval
    closer: Interval
    copies: float
    copies_real: float
    exact: int
    leaked: int
    samples: int
    twins: int
    pairs: float
    train: int
    searched: int
    holdout: int
    repeated: int
    chance: bool
    nearest: tuple[tuple[int, int, float], ...]
    space: str
    notes: tuple[str, ...] = ()
    shown: tuple[Tensor, Tensor] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def z(self) -> float:
        """How many standard deviations `closer` is above 1/2."""
        return (self.closer.value - 0.5) * 2 * math.sqrt(self.pairs)

    @property
    def verdict(self) -> str:
        """ "memorised" (by chance once in 1,000 cases), "suspect" (by chance once in 100) or "none"."""
        return "memorised" if self.z > _CERTAIN else "suspect" if self.z > _LIKELY else "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        made = {name: value for name, value in vars(self).items() if name != "shown"}
        made |= {"ratio": self.ratio.to_dict(), "closer": self.closer.to_dict()}
        made |= {"notes": list(self.notes), "nearest": [list(each) for each in self.nearest]}
        return {"verdict": self.verdict, "z": self.z, **made}

    def __str__(self) -> str:
        return "\n".join(copies_words(self.to_dict()))


@default_cpu()
def memorization(
    model: Any,
    data: Any = None,
    holdout: Any = None,
    *,
    generated: Any = None,
    samples: int = 512,
    labels: Any = None,
    size: int | None = None,
    features: Features | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
) -> Memorization:
    """How close a model's samples are to its training samples, compared with new samples.

    ratio = median r(s) / median r(twin),   closer = P(r(s) < r(twin)),   r = d(., train) / d(., hold-out)

    model: a denoiser, or the path of a model file or run folder. data: its training data, as `sf.data.open` takes them,
    with the training's settings `labels` and `size`; split as in training, or the training set alone if `holdout` is
    unseen data. generated: samples to judge, in the units of the data, instead of new ones; of sequences a list.
    samples: how many to draw, by default in 10 steps (a coupling flow in one call) and unguided (the learned law), with
    the conditions of their twins; where these are more than classes, a sample is not compared with its own twin,
    which it should resemble. features: a map x (B, *shape) in the units of the data -> (B, F), in which to measure
    distances; by default these use all numbers, each divided by its channel's deviation.

    Cost: at most samples (steps + 1) network calls, and 4 samples N D multiplications. Raises SfumatoError for data
    other than the training data, or without a hold-out.
    """
    if data is None:
        raise SfumatoError("memorization needs the data that the model was trained on: sf.memorization(model, data).")
    samples, seed = whole("samples", samples), whole("seed", seed, None)
    if isinstance(model, str | os.PathLike):
        model = serialization.load_sampler(model, device=device, also=STATELESS)
    source, train, unseen, rest = _sides(model, data, holdout, labels, size)
    if source.text is not None:
        raise SfumatoError(f"{source.name} is text, and distances between texts say little: read its samples instead.")
    require_distances(source, unseen, features)
    twins = choose(train, samples if generated is None else len(generated), seed)
    if source.layout and isinstance(generated, list | tuple):
        generated = Lengths.fit(source.x, source.layout).padded(generated, source.shape)
    told = generated is None and tells_apart(model)
    if generated is None:
        cond = of_data(model, source, twins)
        drawn_from = model if guidance is None else guide(model, guidance)
        steps = _STEPS if steps is None and not isinstance(model, CouplingFlow) else steps
        generated = drawn(drawn_from, len(twins), steps, seed, cond, batch)
    space, chance = Space(getattr(model, "spec", None), features, device, unordered(model)), source.table is not None
    if source.table is not None:
        generated, source, unseen, space = of_cells(generated, source, unseen, features)
    return compare(generated, source, train, (unseen, rest), twins, space, seed, told=told, chance=chance)


def require_distances(source: Source, unseen: Source, features: Features | None) -> None:
    """Raise SfumatoError for missing values where they have no distances: in sequences, to whole samples, in
    features."""
    gaps = [any(each.missing) for each in (source, unseen)]
    if any(gaps) and (features is not None or source.layout or not all(gaps)):
        name = (source if gaps[0] else unseen).name
        raise SfumatoError(
            f"{name} has missing values, which have no distances in features, in sequences, or to whole samples."
        )


def drawn(
    model: Any, n: int, steps: int | None, seed: int, cond: Any, batch: int = 256, world: World = ALONE,
    solver: AnySolver | None = None,
) -> Tensor:  # fmt: skip
    """n samples in the units of the data; of a table its rows as vectors."""
    how = {"steps": steps, "solver": solver, "seed": seed, "batch": batch, "world": world, "cond": cond}
    whole = isinstance(model, STATELESS)  # a model of stages, each of which has units of its own, or one without any
    x = sample(model, n, normalised=not whole, **how)
    spec = getattr(model, "spec", None)
    if spec is not None and not whole:  # of coefficients they are samples already
        x = spec.denormalise(x if isinstance(model.process, Spectral) else model.process.table(x))
    assert isinstance(x, Tensor)
    return x


def of_cells(
    generated: Tensor, source: Source, other: Source, features: Features | None
) -> tuple[Tensor, Source, Source, Space]:
    """Rows of tables as `cells_apart`, in which distances are measured."""
    table = source.table
    rows = dataclasses.replace(source, x=cells_apart(table, source.x[torch.arange(len(source))]), table=None)
    unseen = rows
    if other is not source:
        unseen = dataclasses.replace(other, x=cells_apart(table, other.x[torch.arange(len(other))]), table=None)
    space = Space(None, torch.Tensor.double, words=_OF_CELLS) if features is None else Space(None, features)
    return cells_apart(table, generated), rows, unseen, space


def cells_apart(table: Any, x: Tensor) -> Tensor:
    """Rows x (N, D) of a table as vectors, float32: a number by the normal score of its cell's middle, a symbol as one
    of its states, 1 apart from any other. Rows of equal cells have equal vectors."""
    columns = table.decode(x)
    parts = []
    for field in table.fields:
        column = columns[field.name]
        if field.numeric:
            middle = torch.from_numpy(field.cells(column)[:, :2].mean(1))
            parts.append(torch.where(torch.from_numpy(column.present), middle, 0.0)[:, None])
        else:
            parts += [torch.nn.functional.one_hot(torch.from_numpy(digit), field.states[0]) / math.sqrt(2)
                      for digit in field.digits(column).T]  # fmt: skip
        if field.numeric and field.missing:
            parts.append(torch.from_numpy(~column.present)[:, None])
    return torch.cat([part.float() for part in parts], 1)


def tells_apart(model: Any) -> bool:
    """Whether conditions of the model, other than classes, may tell one training sample from all others."""
    spec = getattr(model, "spec", None)
    return spec is not None and any(each.kind not in ("label", "multilabel") for each in spec.conditions.values())


def _sides(
    model: Any, given: Any, holdout: Any, labels: Any, size: int | None
) -> tuple[Source, Tensor, Source, Tensor]:
    """(source, rows of the training set, source, rows of the hold-out)."""
    source = data.open(given, labels=labels, size=size, conditions=getattr(model, "spec", None))
    if holdout is not None:
        table = getattr(model, "spec", None) if source.table is not None else None  # by whose columns rows are read
        unseen = lengthened(data.open(holdout, size=size, conditions=table), source.shape[-1])
        source = lengthened(source, unseen.shape[-1])
        if unseen.shape != source.shape:
            raise SfumatoError(f"Held-out samples have shape {unseen.shape}, but training samples {source.shape}.")
        return source, torch.arange(len(source)), unseen, torch.arange(len(unseen))
    made = getattr(model, "provenance", None) or {}
    if not made.get("holdout"):
        raise SfumatoError(
            "The model does not record what its training held out: give unseen data with --holdout (holdout in Python)."
        )
    if made.get("samples") != len(source):
        raise SfumatoError(
            f"{source.name} has {counted(len(source), 'sample')}, but the model was trained on "
            f"{made.get('samples'):,}: give the training data, or unseen data with --holdout (holdout in Python)."
        )
    train, rest = source.split(made["holdout"])
    return source, train, source, rest


def choose(train: Tensor, count: int, seed: int) -> Tensor:
    """Rows of `count` twins among those of the training set; repeated in turn if there are fewer."""
    order = noise.permutation(seed, 0, len(train))
    return train[order[torch.arange(count) % len(train)]]


def compare(
    generated: Tensor, source: Source, train: Tensor, unseen: tuple[Source, Tensor], twins: Tensor, space: Space,
    seed: int = 0, searched: int | None = None, told: bool = False, chance: bool = False,
) -> Memorization:  # fmt: skip
    """`memorization` of existing samples (S, *shape) in the units of the data.

    train: rows of the source; unseen: another source, or the same, and its rows; twins: some of the training rows.
    searched: the largest number of training samples to search. told: each sample was given the conditions of its twin,
    which tell that from all others; like the twin itself it is then compared with the others alone. chance: as there.
    """
    other, held = unseen
    if not len(held) or len(train) < 2 or not len(generated):
        raise SfumatoError("Memorisation needs samples, a hold-out, and at least two training samples.")
    bank, notes = train, []
    if searched is not None and searched < len(train):
        bank = train[noise.permutation(seed, 1, len(train))[:searched]].sort().values
        notes.append(f"Only {len(bank):,} training samples were searched, to stay within the budget.")
    asked, twins = twins, twins.unique()
    if source.missing and not source.layout:  # samples lack what their twins do, which is fair where chance decides it
        generated = torch.where(source.x[asked].isnan(), torch.nan, generated.cpu())
    if told:
        notes.append("Each sample was given the conditions of a training sample, which it was not compared with.")
    if len(held) < _FEW:
        notes.append(
            f"Only {counted(len(held), 'sample is', 'samples are')} held out, too few to judge memorisation (raise "
            "--holdout)."
        )
    keys = torch.from_numpy(np.unique(source.groups, return_inverse=True)[1])
    count, both = len(generated), torch.cat((space(generated), space(source.x[twins])))
    apart = torch.cat((keys[asked] if told else torch.full((count,), -1), keys[twins]))
    near, own = _parted(nearest(both, source.x, bank, space, apart, keys[bank]), count)
    (away, *_), (own_away, *_) = _parted(nearest(both, other.x, held, space), count)
    if strange := int((near.first.isinf() & away.isinf()).sum()):
        if strange == len(near.first):
            raise SfumatoError(
                "The samples have no value in common with any real one, so nothing tells how near they are."
            )
        notes.append(f"Samples that have no value in common with any real one count as ties: {strange:,}.")
    scores, twin_scores = _score(near.first, away), _score(own.first, own_away)
    usable = own.first.isfinite()  # without other groups there are no neighbours
    if not bool(usable.any()):
        raise SfumatoError("All training samples belong to one group, so none can stand in for a new sample.")
    twin_scores, own = twin_scores[usable], Near(*(each[usable] for each in own))
    middle = float(twin_scores.median())
    worth = min(len(scores), len(bank)), _distinct(twins[usable], own.row)
    pairs = _pairs(*worth)
    order = scores.argsort()[:8].tolist()
    relative = (scores - middle).exp().nan_to_num(0.0, 0.0)
    return Memorization(
        ratio=_ratio(scores, twin_scores, worth, seed),
        closer=fraction(_closer(scores, twin_scores), pairs),
        copies=_copies(near), copies_real=_copies(own),
        exact=int((near.first.isfinite() & _equal(generated.cpu(), source.x[near.row], not source.layout)).sum()),
        **_equals(source.x, bank, keys[bank].tolist(), other.x, held), chance=chance,
        samples=len(scores), twins=len(twin_scores), pairs=pairs,
        train=len(train), searched=len(bank), holdout=len(held),
        nearest=tuple((i, int(near.row[i]), float(relative[i])) for i in order),
        space=space.words,
        notes=tuple(notes), shown=(generated.cpu()[order], source.x[near.row[order]]),
    )  # fmt: skip


def _parted(found: Near, count: int) -> tuple[Near, Near]:
    """The neighbours of samples, and those of twins, which are looked for together: a row may cost a network."""
    return Near(*(each[:count] for each in found)), Near(*(each[count:] for each in found))


def pairs_picture(found: Memorization, spec: Any) -> Any:
    """A row of the samples closest to training samples above a row of those; None for points, or if none were kept."""
    if found.shown is None or found.shown[0].shape[1:] == (2,):
        return None
    x = torch.cat([each.float() for each in found.shown])
    kind, bounds = ("array", None) if spec is None else (spec.kind, spec.bounds)
    return picture(x, kind, bounds, len(found.shown[0]), ["samples", "training"])


def _score(first: Tensor, away: Tensor) -> Tensor:
    """log d(x, train) / d(x, hold-out), float64; 0 if x is in both, or has no number in common with either."""
    first, away = first.double(), away.double()
    same = (first == away) & ((first == 0) | first.isinf())
    return torch.where(same, 0.0, first.log() - away.log())


def _closer(a: Tensor, b: Tensor) -> float:
    """P(a < b) + P(a = b) / 2 over all pairs."""
    b = b.sort().values
    below, upto = torch.searchsorted(b, a), torch.searchsorted(b, a, right=True)
    return float((len(b) - (below + upto).double() / 2).mean()) / len(b)


def _pairs(a: int, b: int) -> float:
    """The number of independent comparisons equivalent to all pairs of a and b draws: 1 / (4 Var), Mann and Whitney."""
    return 3 * a * b / (a + b + 1)


def _distinct(twins: Tensor, row: Tensor) -> int:
    """The number of twins, counting mutual nearest neighbours once, since they share one distance."""
    return len(torch.stack((torch.minimum(twins, row), torch.maximum(twins, row))).unique(dim=1)[0])


def _ratio(scores: Tensor, twins: Tensor, worth: tuple[int, int], seed: int) -> Interval:
    """The ratio of the medians, with a bootstrap interval for the number of independent draws on each side."""
    generator = torch.Generator().manual_seed(seed)

    def medians(values: Tensor, count: int) -> Tensor:
        chosen = torch.randint(len(values), (_RESAMPLED, count), generator=generator)
        return values[chosen].median(1).values

    value = float(scores.median() - twins.median())
    drawn = (medians(scores, worth[0]) - medians(twins, worth[1])).nan_to_num(nan=0.0).sort().values
    low, high = (float(drawn[round(p * (len(drawn) - 1))]) for p in (0.025, 0.975))
    return Interval(*(math.exp(v) if v < 700 else math.inf for v in (value, low, high)))


def _copies(near: Near) -> float:
    return float((near.first < _THIRD * near.second).double().mean())


def _equal(a: Tensor, b: Tensor, gaps: bool) -> Tensor:
    """Which rows are equal, bool (n,); NaN, beyond the end of a sequence, equals NaN; with gaps, it equals anything."""
    alike = a.isnan() | b.isnan() if gaps else a.isnan() & b.isnan()
    return ((a == b) | alike).flatten(1).all(1)


def _equals(x: Samples, train: Tensor, groups: list[int], other: Samples, held: Tensor) -> dict[str, int]:
    """How many held-out rows equal a training row bit for bit (leaked), and training rows one of another group
    (repeated)."""
    own, seen = _digests(x, train), dict[bytes, int]()
    for digest, group in zip(own, groups, strict=True):
        seen[digest] = group if seen.get(digest, group) == group else -1  # of several
    leaked = sum(digest in seen for digest in _digests(other, held))
    return {"leaked": leaked, "repeated": sum(seen[digest] < 0 for digest in own)}


def _digests(x: Samples, rows: Tensor) -> list[bytes]:
    found = []
    for part in rows.split(4096):
        block = x[part].flatten(1).contiguous().view(torch.uint8).numpy()
        found += [blake2b(row, digest_size=16).digest() for row in block]
    return found
