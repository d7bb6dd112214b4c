"""Model -> Model: guidance and other wrappers. Every sampler and every loss takes what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.belief import Estimate
from sfumato.conditions import NULL as NULL
from sfumato.conditions import absent, declared, joined
from sfumato.errors import SfumatoError
from sfumato.model import Model, usable
from sfumato.process import Gaussian
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, as_time, schedule_of
from sfumato.state import State, cat_states

Scale = float | Mapping[str, float]  # of guidance: one for all conditions, or one for each


class Wrapped:
    """A model around another, whose attributes (shape, spec, device) it passes on."""

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

        one scale a condition:  eps = eps_null + sum_i w_i (eps_i - eps_null),   eps_i under condition i alone

    With a scale a condition, {"label": 3.0, "mass": 1.5}, conditions without a scale are given in every term, eps_null
    too. Outside the interval (lowest, highest logsnr) the plain conditional model is used (Kynkaanniemi et al.
    2024, 2404.07724).
    Sources: Ho and Salimans 2022 (2207.12598), Eq. 6, with scale = 1 + w; Liu et al. 2022 (2206.01714), Eq. 11.
    """

    def __init__(self, inner: Model, scale: Scale = 1.0, interval: tuple[float, float] | None = None) -> None:
        super().__init__(usable(inner, "Guidance"))
        each: Mapping[str, Any] = scale if isinstance(scale, Mapping) else {"": scale}
        try:
            scales = {str(name): float(w) for name, w in each.items() if not isinstance(w, str)}
        except TypeError:
            scales = {}
        if not scales or not all(map(math.isfinite, scales.values())):
            raise SfumatoError(f"The guidance scale must be a finite number, or one a condition, got {scale!r}.")
        self.scale = scales if isinstance(scale, Mapping) else scales[""]
        if interval is not None and not interval[0] < interval[1]:
            raise SfumatoError(f"The guidance interval needs two rising logsnr values, got {interval}.")
        self.interval = interval

    def _inside(self, t: Tensor) -> Tensor:
        """Where guidance acts, bool like t."""
        if self.interval is None:
            return torch.ones_like(t, dtype=torch.bool)
        logsnr = self.process.level(t)
        return (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])

    def _groups(self, cond: Mapping[str, Any]) -> list[tuple[float, set[str]]]:
        """(scale, the conditions that it goes with)."""
        if not cond:
            names = ", ".join(declared(self.inner) or {"label": None})
            raise SfumatoError(f"Guidance needs a condition to guide to, of {names}: give one.")
        if not isinstance(self.scale, dict):
            return [(self.scale, set(cond))]
        wrong = next((name for name in self.scale if name not in cond), None)
        if wrong is not None:
            raise SfumatoError(f"The guidance scale names {wrong!r}, and what is given is {', '.join(cond)}.")
        return [(scale, {name}) for name, scale in self.scale.items()]

    def __call__(self, z: State, t: Time, /, **cond: Any) -> Any:
        cond = {name: value for name, value in cond.items() if value is not None}
        groups, t = self._groups(cond), as_time(t)
        null = {name: absent(cond[name]) for _, names in groups for name in names}
        if len(groups) == 1:
            scale = torch.full_like(t, groups[0][0])
            scale = scale if self.interval is None else torch.where(self._inside(t), scale, 1.0)
            if bool((scale == 1).all()):
                return self.inner(z, t, **cond)
            if bool((scale == 0).all()):
                return self.inner(z, t, **{**cond, **null})
            base, conditional = self._beliefs(z, t, [{**cond, **null}, cond])
            return base.lerp(conditional, scale)
        inside = self._inside(t)
        if not bool(inside.any()):
            return self.inner(z, t, **cond)
        apart = [{**cond, **{other: null[other] for other in null if other not in names}} for _, names in groups]
        base, *each = self._beliefs(z, t, [{**cond, **null}, *apart])
        found = base
        for k, ((w, _), one) in enumerate(zip(groups, each, strict=True)):  # the mean of len(groups) guided beliefs
            found = found.lerp(base.lerp(one, len(groups) * w), 1 / (k + 1))
        return found if bool(inside.all()) else self.inner(z, t, **cond).lerp(found, inside.to(t.dtype))

    def _beliefs(self, z: State, t: Tensor, conds: list[dict[str, Any]]) -> Any:
        """The beliefs under each of these, by one call: cheaper than several on every device."""
        n = len(conds)
        every = {name: joined([cond[name] for cond in conds]) for name in conds[0]}
        return self.inner(cat_states([z] * n), torch.cat([t] * n) if t.ndim else t, **every).chunk(n)


def guide(model: Model, scale: Scale = 1.0, interval: tuple[float, float] | None = None) -> Guided:
    """Classifier-free guidance; scale 1 is the conditional model, 0 the unconditional; or one scale a condition, as
    {"label": 3.0, "temperature": 1.5}. `interval` is in logsnr."""
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
        self.schedule, self._process = schedule_of(schedule), move(schedule)

    @property
    def process(self) -> Any:
        return self._process

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Any:
        t = as_time(t)
        z_base, t_base = self.process.same_level(z, t, self.inner.process)
        return self.inner(z_base, t_base, **cond).under(self.process, z, t)


class Unrolled(Wrapped):
    """The same belief in samples that are differentiated, all calls of a walk or the last `grad_calls` of them.

    checkpoint: only each call's input is kept; what lies within a call is computed again on the way back, so that the
    memory is that of one call and not of all (Chen et al. 2016, 1604.06174).
    """

    def __init__(self, inner: Model, grad_calls: int | Literal["all"] = "all", checkpoint: bool = True) -> None:
        super().__init__(inner)
        if grad_calls != "all" and (not isinstance(grad_calls, int) or grad_calls < 1):
            raise SfumatoError(f"grad_calls must be a number of calls, at least 1, or 'all', not {grad_calls!r}.")
        self.grad_calls, self.checkpoint = grad_calls, checkpoint

    def __call__(self, z: Any, t: Time, /, **cond: Any) -> Any:
        if not (self.checkpoint and torch.is_grad_enabled() and isinstance(self.process, Gaussian)):
            return self.inner(z, t, **cond)
        x, eps, share = checkpoint(self._signals, z, t, cond, use_reentrant=False)
        return Estimate(
            z, t, self.process.schedule, x=x, eps=eps, variance=lambda: self.inner(z, t, **cond).variance,
            variance_share=share,
        )  # fmt: skip

    def _signals(self, z: Tensor, t: Time, cond: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        belief = self.inner(z, t, **cond)
        return belief.x, belief.eps, belief.variance_share


def differentiable(model: Model, calls: int | Literal["all"] = "all", checkpoint: bool = True) -> Unrolled:
    """The model whose samples have gradients: d(samples) / d(weights, z, conditions), as in `sf.sample(model, 4)`.

    calls: those of the last K calls of a walk, what came before being a constant (AlignProp, 2310.03739; DRaFT-K,
    2309.17400), or "all". checkpoint=True computes each call anew on the way back instead of keeping it.
    """
    return Unrolled(model, calls, checkpoint)
