"""Model -> Model: guidance and other wrappers. Every sampler and every loss takes what comes out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.belief import Estimate
from sfumato.conditions import NULL as NULL
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, as_time
from sfumato.state import cat_states


class Wrapped:
    """A model around another: what it does not say itself (shape, spec, device) is the inner model's."""

    def __init__(self, inner: Model) -> None:
        self.inner = inner

    @property
    def process(self) -> Any:
        return self.inner.process

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


@register("model", "Guided")
class Guided(Wrapped):
    """belief = null + scale (conditional - null): scale 1 is the conditional model, 0 the unconditional.

    Ho and Salimans 2022 (2207.12598), Eq. 6, with scale = 1 + w. Outside the interval (lowest, highest logsnr) the
    conditional model acts alone (Kynkaanniemi et al. 2024, 2404.07724).
    """

    def __init__(self, inner: Model, scale: float, interval: tuple[float, float] | None = None) -> None:
        super().__init__(inner)
        if not math.isfinite(scale):
            raise SfumatoError(f"The guidance scale must be a finite number, got {scale}.")
        if interval is not None and not interval[0] < interval[1]:
            raise SfumatoError(f"The guidance interval needs two rising logsnr values, got {interval}.")
        self.scale, self.interval = float(scale), interval

    def _scale_at(self, t: Tensor) -> Tensor:
        scale = torch.full_like(t, self.scale)
        if self.interval is None:
            return scale
        logsnr = self.process.level(t)
        inside = (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])
        return torch.where(inside, scale, 1.0)

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Estimate:
        if not cond:
            raise SfumatoError("Guidance needs a condition to guide to, such as label=...: give one.")
        t = as_time(t)
        scale = self._scale_at(t)
        if bool((scale == 1).all()):
            return self.inner(z, t, **cond)
        null = {name: torch.full_like(value, NULL) for name, value in cond.items()}
        if bool((scale == 0).all()):
            return self.inner(z, t, **null)
        # one call of twice the batch: cheaper than two calls on every device
        both = {name: torch.cat((value, null[name])) for name, value in cond.items()}
        belief = self.inner(cat_states([z, z]), torch.cat((t, t)) if t.ndim else t, **both)
        conditional, unconditional = belief.chunk(2)
        return unconditional.lerp(conditional, scale)


def guide(model: Model, scale: float = 1.0, interval: tuple[float, float] | None = None) -> Guided:
    """Classifier-free guidance; scale 1 is the conditional model, 0 the unconditional. `interval` is in logsnr."""
    return Guided(model, scale, interval)


@register("model", "Rescheduled")
class Rescheduled(Wrapped):
    """The same model under another schedule: t' = base.time(logsnr(t)), z' = z n'/n with n = sqrt(alpha^2 + sigma^2).

    Equal logsnr is equal information: p_t' and p_t are the same law up to scale (z_VE = z_VP / alpha).
    Where the new schedule leaves the base's range of logsnr, the base answers at its end, the nearest
    that it knows.
    """

    def __init__(self, inner: Model, schedule: Schedule) -> None:
        super().__init__(inner)
        move = getattr(inner.process, "rescheduled", None)
        if move is None:
            raise SfumatoError(f"{type(inner.process).__name__} has no schedule of its own: reschedule its parts.")
        self.schedule, self._process = schedule, move(schedule)

    @property
    def process(self) -> Any:
        return self._process

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Any:
        t = as_time(t)
        z_base, t_base = self.process.same_level(z, t, self.inner.process)
        return self.inner(z_base, t_base, **cond).under(self.process, z, t)


class Unrolled(Wrapped):
    """The same belief in a walk that is differentiated: the first `skip` calls are constants, the rest have gradients.

    checkpoint: only each call's input is kept; what lies within a call is computed again on the way back, so that the
    memory is that of one call and not of all (Chen et al. 2016, 1604.06174). One object serves one walk.
    """

    def __init__(self, inner: Model, skip: int = 0, checkpoint: bool = True) -> None:
        super().__init__(inner)
        self.skip, self.checkpoint, self.calls = skip, checkpoint, 0

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Estimate:
        self.calls += 1
        if self.calls <= self.skip:
            with torch.no_grad():
                x, eps, share = self._signals(z, t, cond)
        elif self.checkpoint:
            x, eps, share = checkpoint(self._signals, z, t, cond, use_reentrant=False)
        else:
            return self.inner(z, t, **cond)
        return Estimate(
            z, t, self.process.schedule, x=x, eps=eps, variance=lambda: self.inner(z, t, **cond).variance,
            variance_share=share,
        )  # fmt: skip

    def _signals(self, z: Tensor, t: Time, cond: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        belief = self.inner(z, t, **cond)
        return belief.x, belief.eps, belief.variance_share
