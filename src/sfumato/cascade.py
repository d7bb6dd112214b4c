"""Cascades: a model of small samples, and models that enlarge what the one before has drawn.

    y ~ p(y),   c = alpha y + s eta,   alpha = sqrt(1 - s^2),   x ~ p(x | c, s)

The level s of the noise on what an upscaler is told is drawn in training and chosen for sampling: it hides what the
stage before does wrong, and at s = 1 tells nothing. For a jointly normal pair with covariances C_xy, C_yy a bias b
of y comes out as alpha C_xy (alpha^2 C_yy + s^2)^-1 alpha b, which falls with s. Source: Ho et al. 2021 (2106.15282),
Sec. 4, noise, blur and truncated conditioning augmentation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.belief import broadcast
from sfumato.conditions import AUGMENTATION, LOW, Given, declared
from sfumato.errors import SfumatoError, suggest
from sfumato.model import usable
from sfumato.noise import Noise
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register

KINDS = ("noise", "blur")
WIDEST = 2.0  # deviation in pixels of the blur of level 1
LEVEL = 0.3  # of sampling


def lowered(x: Tensor, factor: int) -> Tensor:
    """The means of blocks of `factor` places along each axis of fields (B, C, *spatial); of vectors x as it is.

    Raises SfumatoError where the sides are no multiples of the factor.
    """
    if x.ndim == 2 or factor == 1:
        return x
    if any(n % factor for n in x.shape[2:]):
        raise SfumatoError(f"Fields of {tuple(x.shape[2:])} places cannot be lowered {factor} times: pick a divisor.")
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    found: Tensor = pool(x, factor)
    return found


def augmented(y: Tensor, level: Tensor, noise: Noise, kind: str = "noise") -> Tensor:
    """c for y (B, C, *spatial) or (B, D) at levels s (B,) in [0, 1], like y.

    noise      sqrt(1 - s^2) y + s eta
    blur       y convolved with a normal kernel of deviation s WIDEST pixels, mirrored at the edges
    """
    if kind == "noise":
        eta = noise.fold(AUGMENTATION).normal(tuple(y.shape[1:]), y.device, y.dtype)
        return broadcast((1 - level.square()).clamp_min(0).sqrt().to(y), y) * y + broadcast(level.to(y), y) * eta
    if y.ndim < 3:
        raise SfumatoError("Vectors have no places to blur: take augmentation='noise'.")
    for axis in range(2, y.ndim):
        n = y.shape[axis]
        wave = torch.fft.rfftfreq(2 * n, device=y.device, dtype=y.dtype) * 2 * torch.pi
        kept = torch.exp(-0.5 * (WIDEST * level.to(y)[:, None] * wave).square())
        shape = [len(y), *(1,) * (y.ndim - 1)]
        shape[axis] = -1
        both = torch.fft.rfft(torch.cat((y, y.flip(axis)), axis), dim=axis)
        y = torch.fft.irfft(both * kept.reshape(shape), 2 * n, dim=axis).narrow(axis, 0, n)
    return y


def told(y: Tensor, level: Tensor, noise: Noise, kind: str) -> dict[str, Any]:
    """The conditions of an upscaler for normalised small samples y (B, ..) and levels (B,)."""
    here = torch.ones(len(y), dtype=torch.bool, device=y.device)
    return {LOW: Given(augmented(y, level, noise, kind), here), AUGMENTATION: Given(level.to(y), here)}


class Staged(ABC):
    """Models that draw one after the other, each told what the one before has drawn: a `Cascade`, an `UnCLIP` pair.

    first: a model, or again one of stages; last: the model of what `sample` returns. Each stage has conditions and
    units of its own. told: the condition of `last` that holds what `first` has drawn; a user who gives it, in user
    units, draws from `last` alone.
    """

    told: ClassVar[str]
    provenance: dict[str, Any]

    @property
    @abstractmethod
    def first(self) -> Any: ...

    @property
    @abstractmethod
    def last(self) -> Any: ...

    @abstractmethod
    def put_together(self, first: Any, last: Any) -> Self:
        """The same of other models."""

    @abstractmethod
    def conditions(self, drawn: Tensor, noise: Noise, normalised: bool = False) -> dict[str, Any]:
        """What `last` is told of samples (B, ..) of `first`, in user units unless `normalised`."""

    @property
    def stop(self) -> float:
        """The time at which the stage before `last` ends, 0 for whole samples."""
        return 0.0

    def unfinished(self, z: Tensor, noise: Noise) -> dict[str, Any]:
        """What `last` is told of states z (B, ..) of the stage before it at the time `stop`: at 0, of samples."""
        return self.conditions(z, noise, normalised=True)

    @property
    def stages(self) -> tuple[Any, ...]:
        """The models of the stages, in the order in which they draw."""
        return (*(self.first.stages if isinstance(self.first, Staged) else (self.first,)), self.last)

    def each_stage(self, change: Callable[[Any], Any]) -> Self:
        """The same of change(stage) for each of the stages."""
        first = self.first.each_stage(change) if isinstance(self.first, Staged) else change(self.first)
        found = self.put_together(first, change(self.last))
        found.provenance = self.provenance
        return found

    def for_stage(self, stage: Any, given: Any) -> Any:
        """What is given by name of condition, of those that this stage knows, or none does; anything else as it is."""
        every = [declared(each) for each in self.stages]
        known, all_known = declared(stage), {name for each in every for name in each or ()}
        if known is None or not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if name in known or name not in all_known}

    @property
    def spec(self) -> Any:
        return getattr(self.last, "spec", None)

    @property
    def shape(self) -> Any:
        """The shape of a sample."""
        return getattr(self.last, "shape", None)

    @property
    def device(self) -> torch.device:
        found: torch.device = getattr(self.last, "device", torch.device("cpu"))
        return found

    @property
    def compute_dtype(self) -> Any:
        """The dtype in which the networks compute, None for that of their weights; set for all stages."""
        return getattr(self.last, "compute_dtype", None)

    @compute_dtype.setter
    def compute_dtype(self, low: Any) -> None:
        for stage in self.stages:
            stage.compute_dtype = low


@register("model", "Cascade")
class Cascade(Staged):
    """inner draws small samples, a model or a cascade; upscaler enlarges them `factor` times, given their augmentation.

    `sf.sample(cascade, n)` runs the stages, and `sf.sample(cascade, n, low_resolution=y)` those that enlarge y, one or
    n small samples. augmentation: "noise" or "blur", that of the upscaler's training; level: that of sampling, from 0,
    where the small sample is taken as it is, to 1. A small sample reaches the upscaler in the units of the data.
    truncated: end the stage before at a state that is as noisy as the upscaler is told, z / alpha = y + r eta with
    r = s / sqrt(1 - s^2), in the place of drawing y and adding the noise: c has the same law, its details are not drawn
    only to be hidden, and a number of steps covers less. Where the two stages have other units by channel, r is that of
    the widest, and others get what is missing as new noise.
    """

    told = LOW

    def __init__(
        self,
        inner: Any,
        upscaler: Any,
        factor: int = 2,
        augmentation: str = "noise",
        level: float = LEVEL,
        truncated: bool = False,
    ) -> None:
        if not isinstance(inner, Staged):
            usable(inner, "The first stage of a cascade")
        if augmentation not in KINDS:
            raise SfumatoError(f"Unknown augmentation {augmentation!r}: {suggest(str(augmentation), KINDS)}")
        if not 0 <= level <= 1 or factor < 1:
            raise SfumatoError(
                f"A cascade takes a level from 0 to 1 and a factor of at least 1, not {level!r}, {factor!r}."
            )
        self.inner, self.upscaler = inner, usable(upscaler, "The second stage of a cascade")
        self.factor, self.augmentation, self.level = int(factor), augmentation, float(level)
        self.truncated = bool(truncated)
        self.provenance: dict[str, Any] = {}
        if self.truncated:
            self._require_truncable()
        small, large = getattr(inner, "shape", None), getattr(upscaler, "shape", None)
        if small is None or large is None:
            return
        if tuple(small) != tuple(lowered(torch.zeros(1, *large, device="cpu"), self.factor).shape[1:]):
            raise SfumatoError(
                f"The first stage draws samples of shape {tuple(small)}, and the second enlarges {self.factor} times "
                f"to {tuple(large)}: these do not fit."
            )

    @property
    def first(self) -> Any:
        return self.inner

    @property
    def last(self) -> Any:
        return self.upscaler

    def put_together(self, first: Any, last: Any) -> Cascade:
        return Cascade(first, last, self.factor, self.augmentation, self.level, self.truncated)

    def conditions(self, drawn: Tensor, noise: Noise, normalised: bool = False) -> dict[str, Any]:
        spec = None if normalised else self.spec
        y = drawn if spec is None else spec.normaliser.normalise(drawn)
        y = y.float() if spec is not None else y
        return told(y, torch.full((len(y),), self.level, dtype=y.dtype), noise, self.augmentation)

    @property
    def _before(self) -> Any:
        """The stage before the upscaler."""
        return self.inner.stages[-1] if isinstance(self.inner, Staged) else self.inner

    def _require_truncable(self) -> None:
        """Raise SfumatoError unless a state of the stage before is what the upscaler hears of a sample."""
        what = "A truncated first stage"
        if self.augmentation != "noise" or self.level >= 1:
            raise SfumatoError(
                f"{what} ends at the noise of level s < 1 that the upscaler hears: take augmentation='noise' and a "
                "lower level, or leave truncated out."
            )
        require_numbers(self._before, what, "leave truncated out")
        kinds = {each.kind for each in self._normalisers() if each is not None}
        if kinds - {"affine"}:
            raise SfumatoError(
                f"{what} needs stages whose samples are normalised by mean and deviation, and here some are by "
                f"{', '.join(sorted(kinds - {'affine'}))}: leave truncated out."
            )

    def _normalisers(self) -> list[Any]:
        """Those of the stage before and of the upscaler, None without a spec."""
        specs = (getattr(self._before, "spec", None), self.spec)
        return [None if spec is None else spec.normaliser for spec in specs]

    def _units(self) -> Tensor:
        """The units of the stage before in those of the upscaler, float64, by channel or one number for all."""
        std = [torch.tensor((1.0,) if each is None else each.std, dtype=torch.float64) for each in self._normalisers()]
        return std[0] / std[1]

    @property
    def stop(self) -> float:
        if not self.truncated or self.level == 0:
            return 0.0
        ratio = self.level / math.sqrt(1 - self.level**2) / float(self._units().max())
        return float(self._before.process.schedule.time(-2 * math.log(ratio)))

    def unfinished(self, z: Tensor, noise: Noise) -> dict[str, Any]:
        (alpha, sigma), (before, own) = self._before.process.schedule(self.stop), self._normalisers()
        y = z.double() / alpha
        y = y if before is None else before.denormalise(y)
        y = y if own is None else own.normalise(y).double()
        kept = math.sqrt(1 - self.level**2)
        had = (self._units() * sigma / alpha).reshape(-1, *(1,) * (z.ndim - 2))
        rest = ((self.level / kept) ** 2 - had.square()).clamp_min(0).sqrt()
        eta = noise.fold(AUGMENTATION).normal(tuple(z.shape[1:]), z.device, torch.float64)
        c, here = (kept * (y + rest.to(z.device) * eta)).to(z.dtype), torch.ones(len(z), dtype=torch.bool)
        return {LOW: Given(c, here), AUGMENTATION: Given(torch.full((len(z),), self.level, dtype=z.dtype), here)}
