"""Model -> Model: guidance and other wrappers. Every sampler and every loss accepts the result."""

from __future__ import annotations

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
from sfumato.process import Gaussian, source_of
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, as_time, schedule_of
from sfumato.state import State, cat_states

LARGEST_SCALE = 1e6  # of guidance; its beliefs are numbers of float32
Scale = float | Mapping[str, float]  # guidance scale: one for all conditions, or one per condition


class Wrapped:
    """A model around another one; it forwards the inner model's attributes (shape, spec, device).

    two_times: whether it understands the second time of a flow map, `until`.
    """

    two_times: Any = False

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

        one scale per condition:  eps = eps_null + sum_i w_i (eps_i - eps_null),   eps_i under condition i alone

    With one scale per condition, {"label": 3.0, "mass": 1.5}, conditions without a scale are passed in every term,
    including eps_null. Outside the interval (lowest, highest logsnr) the plain conditional model is used (Kynkaanniemi
    et al. 2024, 2404.07724).
    Sources: Ho and Salimans 2022 (2207.12598), Eq. 6, with scale = 1 + w; Liu et al. 2022 (2206.01714), Eq. 11.
    """

    def __init__(self, inner: Model, scale: Scale = 1.0, interval: tuple[float, float] | None = None) -> None:
        super().__init__(usable(inner, "Guidance"))
        each: Mapping[str, Any] = scale if isinstance(scale, Mapping) else {"": scale}
        try:
            scales = {str(name): float(w) for name, w in each.items() if not isinstance(w, str)}
        except (TypeError, OverflowError):
            scales = {}
        if not scales or not all(abs(w) <= LARGEST_SCALE for w in scales.values()):
            raise SfumatoError(
                f"The guidance scale must be a finite number, or one per condition, of at most {LARGEST_SCALE:g}, got "
                f"{scale!r:.80}."
            )
        self.scale = scales if isinstance(scale, Mapping) else scales[""]
        try:
            ends = None if interval is None else tuple(float(end) for end in interval)
        except (TypeError, ValueError):
            ends = ()
        if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
            raise SfumatoError(f"The guidance interval must be two increasing logsnr values, got {interval!r:.80}.")
        self.interval = ends

    def _inside(self, t: Tensor) -> Tensor:
        """Whether t lies in the guidance interval, bool like t."""
        if self.interval is None:
            return torch.ones_like(t, dtype=torch.bool)
        logsnr = self.process.level(t)
        return (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])

    def _groups(self, cond: Mapping[str, Any]) -> list[tuple[float, set[str]]]:
        """Pairs (scale, names of the conditions it applies to)."""
        cond = {name: value for name, value in cond.items() if name != source_of(self.process)}
        if not cond:
            names = ", ".join(declared(self.inner) or {"label": None})
            raise SfumatoError(f"Guidance needs a condition to guide to: pass one of {names}.")
        if not isinstance(self.scale, dict):
            return [(self.scale, set(cond))]
        wrong = next((name for name in self.scale if name not in cond), None)
        if wrong is not None:
            raise SfumatoError(f"The guidance scale names {wrong!r}, but the call passes {', '.join(cond)}.")
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
        single = [{**cond, **{other: null[other] for other in null if other not in names}} for _, names in groups]
        base, *each = self._beliefs(z, t, [{**cond, **null}, *single])
        guided = base
        for k, ((w, _), one) in enumerate(zip(groups, each, strict=True)):  # the mean of len(groups) guided beliefs
            guided = guided.lerp(base.lerp(one, len(groups) * w), 1 / (k + 1))
        return guided if bool(inside.all()) else self.inner(z, t, **cond).lerp(guided, inside.to(t.dtype))

    def _beliefs(self, z: State, t: Tensor, conds: list[dict[str, Any]]) -> Any:
        """The beliefs under each set of conditions, from one batched call, which is faster on every device."""
        n = len(conds)
        every = {name: joined([cond[name] for cond in conds]) for name in conds[0]}
        return self.inner(cat_states([z] * n), torch.cat([t] * n) if t.ndim else t, **every).chunk(n)


def guide(model: Model, scale: Scale = 1.0, interval: tuple[float, float] | None = None) -> Guided:
    """Classifier-free guidance: scale 1 is the conditional model, 0 the unconditional one. `scale` may also be one per
    condition, {"label": 3.0, "temperature": 1.5}. `interval` is in logsnr."""
    return Guided(model, scale, interval)


@register("model", "Rescheduled")
class Rescheduled(Wrapped):
    """The same model under another schedule: t' = base.time(logsnr(t)), z' = z n'/n with n = sqrt(alpha^2 + sigma^2).

    Equal logsnr means equal information: p_t' and p_t are the same distribution up to scale (z_VE = z_VP / alpha).
    Outside the base's range of logsnr the base is called at its nearest end.
    """

    def __init__(self, inner: Model, schedule: Schedule) -> None:
        super().__init__(inner)
        move = getattr(inner.process, "rescheduled", None)
        if move is None:
            raise SfumatoError(f"{type(inner.process).__name__} has no single schedule: reschedule its parts.")
        self.schedule, self._of = schedule_of(schedule), inner.process
        self._process = move(self.schedule)
        self.two_times = getattr(inner, "two_times", False)

    @property
    def process(self) -> Any:
        if (of := self.inner.process) is not self._of:  # learned vectors are those of the network as it is now
            self._of, self._process = of, of.rescheduled(self.schedule)
        return self._process

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Any:
        t = as_time(t)
        z_base, t_base = self.process.same_level(z, t, self.inner.process)
        if self.two_times and "until" in cond:
            logsnr = self.process.schedule.logsnr(as_time(cond["until"]))
            cond = {**cond, "until": self.inner.process.schedule.time(logsnr)}
        return self.inner(z_base, t_base, **cond).under(self.process, z, t)


class Unrolled(Wrapped):
    """The same model, differentiated through sampling: through all calls of a walk or the last `grad_calls`.

    checkpoint: store only the input of each call and recompute the call in the backward pass, which takes the memory of
    one call instead of all (Chen et al. 2016, 1604.06174).
    """

    def __init__(self, inner: Model, grad_calls: int | Literal["all"] = "all", checkpoint: bool = True) -> None:
        super().__init__(inner)
        if grad_calls != "all" and (not isinstance(grad_calls, int) or grad_calls < 1):
            raise SfumatoError(f"grad_calls must be a number of calls, at least 1, or 'all', not {grad_calls!r}.")
        self.grad_calls, self.checkpoint = grad_calls, checkpoint

    def __call__(self, z: Any, t: Time, /, **cond: Any) -> Any:
        wanted = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if not (self.checkpoint and wanted and isinstance(self.process, Gaussian)):
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
    """A model with differentiable samples: `sf.sample` then gives d(samples) / d(weights, z, conditions).

    calls: differentiate only the last K calls and treat earlier ones as constants (AlignProp, 2310.03739; DRaFT-K,
    2309.17400), or "all". checkpoint=True recomputes each call in the backward pass instead of storing it.
    """
    return Unrolled(model, calls, checkpoint)
