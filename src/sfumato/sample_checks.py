"""Look at finished samples once, before they are handed over: NaN, far outside the data, or all the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from sfumato.data import DataSpec
from sfumato.errors import SfumatoWarning

FAR = 0.5  # values further beyond the training data than this fraction of their range are counted
SHARE = 0.02  # the share of such values that is reported
SAME = 1e-6  # samples that differ by less, in standard deviations of the data, are the same
_owner: ContextVar[str | None] = ContextVar("sfumato.samples", default=None)


@contextmanager
def samples_of(owner: str) -> Iterator[None]:
    """Say before warnings of samples within the block whose they are; without an owner, do not warn."""
    token = _owner.set(owner)
    try:
        yield
    finally:
        _owner.reset(token)


class SampleCheck:
    """Counts what is wrong with normalised samples, batch by batch; `warn` reports it in one `SfumatoWarning`.

    spec: the data's contract, whose training range tells what lies far outside, of a latent model that of the codes;
    None compares nothing with it.
    """

    def __init__(self, spec: Any = None) -> None:
        self.spec: DataSpec | None = getattr(spec, "latent", spec)
        self.values, self.lost, self.far = 0, 0, 0
        self.count, self.first, self.differ = 0, None, False

    def look(self, z: Any) -> None:
        """Count the values of one batch (B, ...); symbols and dicts of parts are not looked at."""
        if not isinstance(z, Tensor) or not z.is_floating_point():
            return
        z = z.detach()
        finite = z.isfinite()
        self.values, self.count = self.values + z.numel(), self.count + len(z)
        self.lost += int((~finite).sum())
        if self.spec is not None:
            low, high = self._range(self.spec, z)
            self.far += int((finite & ((z < low) | (z > high))).sum())
        self.first = z[0] if self.first is None else self.first
        self.differ = self.differ or bool(((z - self.first).abs() > SAME).any())

    @staticmethod
    def _range(spec: DataSpec, z: Tensor) -> tuple[Tensor, Tensor]:
        """The range of the training data, wider by FAR at both ends, in normalised units, per channel."""
        shape = (1, -1, *(1,) * (z.ndim - 2))
        low, high = (
            spec.normaliser.normalise(
                torch.tensor(v, dtype=torch.float64, device=z.device).view(shape).expand(1, *z.shape[1:])
            )
            for v in (spec.statistics.low, spec.statistics.high)
        )
        reach = FAR * (high - low).clamp_min(1.0)  # a constant channel has no range
        return low - reach, high + reach

    def sentence(self) -> str | None:
        """What is wrong with the samples, or None."""
        if self.lost:
            return (
                f"{_share(self.lost, self.values)} of the sampled values are NaN or infinite: the model or the plan is "
                "broken, or the guidance far too strong; `sfumato doctor` examines the model."
            )
        if self.far > SHARE * self.values:
            where = "were clipped to the bounds of" if self.spec and self.spec.bounds else "lie outside"
            return (
                f"{_share(self.far, self.values)} of the sampled values {where} the data, by more than half their "
                "range: lower the guidance, take more steps or another solver."
            )
        if self.count > 1 and not self.differ:
            return f"All {self.count:,} samples are the same: the model is untrained, or its weights are broken."
        return None

    def warn(self) -> None:
        """Warn the caller of `sample` if anything is wrong."""
        found, owner = self.sentence(), _owner.get()
        if found is not None and owner != "":
            warnings.warn(found if owner is None else f"{owner}: {found}", SfumatoWarning, stacklevel=3)


def _share(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 1 else f"{part:,}"
