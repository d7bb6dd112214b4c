"""A data set as the rest of the package sees it: samples and conditions in the user's units, with ids and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .column import Column
from .rows import Samples
from .split import split

LABEL = "label"  # the condition that `labels` and `classes` are views of


@dataclass(frozen=True)
class Source:
    """A data set.

    x: (N, *shape) in the user's dtype and units, channels first: a tensor, or `Rows` that are read when asked for.
    labels: int64 (N,) indices into `classes`, -1 where one is missing, or None: the condition "label".
    ids: a stable name for each sample (the path within a folder, the position in an array).
    groups: the key of each sample for the hold-out split; samples of one group are never divided.
    skipped: (path, reason) of each file that could not be used.
    notes: sentences on what was understood and done.
    bounds: declared (lowest, highest) value where the dtype does not say it.
    identity: a name for exactly these values of x, under which figures of them may be kept.
    conditions: name -> one value a sample, in the user's units, some of which may be missing.
    """

    x: Samples
    labels: Tensor | None
    classes: list[str]
    ids: list[str]
    kind: str
    name: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    bounds: tuple[float, float] | None = None
    identity: str | None = None
    conditions: dict[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.ids)
        if self.labels is not None and LABEL not in self.conditions:
            indices = self.labels.numpy()
            first = Column(indices, indices >= 0, tuple(self.classes))
            object.__setattr__(self, "conditions", {LABEL: first, **self.conditions})

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def having(self, conditions: Mapping[str, Column]) -> Source:
        """The same samples with these conditions; `labels` and `classes` are those of a condition "label" that has
        classes."""
        label = conditions.get(LABEL)
        if label is None or label.names is None:
            return replace(self, labels=None, classes=[], conditions=dict(conditions))
        labels = torch.from_numpy(label.values).where(torch.from_numpy(label.present), -1)
        return replace(self, labels=labels, classes=list(label.names), conditions=dict(conditions))

    def split(self, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
        """Indices (train, holdout), by a hash of each sample's group."""
        return split(self.groups, fraction)


def class_counts(source: Source) -> dict[str, int]:
    """Samples per class name, in the order of the classes."""
    if source.labels is None:
        return {}
    counts = Counter(source.labels.tolist())
    return {name: counts[i] for i, name in enumerate(source.classes)}
