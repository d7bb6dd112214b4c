"""A data set as the rest of the package sees it: samples in the user's dtype and units, with ids, labels and notes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from .rows import Samples
from .split import split


@dataclass(frozen=True)
class Source:
    """A data set.

    x: (N, *shape) in the user's dtype and units, channels first: a tensor, or `Rows` that are read when asked for.
    labels: int64 (N,) indices into `classes`, or None.
    ids: a stable name for each sample (the path within a folder, the position in an array).
    groups: the key of each sample for the hold-out split; samples of one group are never divided.
    skipped: (path, reason) of each file that could not be used.
    notes: sentences on what was understood and done.
    bounds: declared (lowest, highest) value where the dtype does not say it.
    identity: a name for exactly these values of x, under which figures of them may be kept.
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

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.ids)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def split(self, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
        """Indices (train, holdout), by a hash of each sample's group."""
        return split(self.groups, fraction)


def class_counts(source: Source) -> dict[str, int]:
    """Samples per class name, in the order of the classes."""
    if source.labels is None:
        return {}
    counts = Counter(source.labels.tolist())
    return {name: counts[i] for i, name in enumerate(source.classes)}
