"""Classifier-free guidance: one scale, one per noise level, or one per condition, away from the null or a negative."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sfumato.compose import Wrapped
from sfumato.conditions import AUGMENTATION, LEFT, LOW, MISSING, absent, declared, joined, resolve
from sfumato.errors import SfumatoError
from sfumato.model import Model, usable
from sfumato.process import source_of
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.schedule import Time, as_time
from sfumato.state import State, cat_states, first_leaf

LARGEST_SCALE = 1e6  # of guidance; its beliefs are numbers of float32
Scale = float | Mapping[str, float] | Sequence[Sequence[float]]  # one, one per condition, or knots (logsnr, scale)


@register("model", "Guided")
class Guided(Wrapped):
    """belief = base + scale (conditional - base): scale 1 is the conditional model, 0 the base.

        one scale per condition:  eps = eps_null + sum_i w_i (eps_i - eps_null),   eps_i under condition i alone

    base: the model without the conditions, or with `negative`, {"label": "dog"}, in the user's values. scale: a number;
    one per condition, {"label": 3.0, "mass": 1.5} (conditions without a scale are passed in every term, including
    eps_null); or knots ((logsnr, scale), ..), linear between them and constant beyond. Outside the interval (lowest,
    highest logsnr) the plain conditional model is used (Kynkaanniemi et al. 2024, 2404.07724).
    Space: any row of a belief, since z is shared; of symbols the log-probabilities. Law on Gaussians p_c = N(m_c, v_c),
    p_base = N(m_u, v_u): the ODE samples the variance v_c^g / v_u^(g-1), DDPM another, and neither of them the tilted
    law p_c^g p_base^(1-g), 1 / variance = g / v_c - (g - 1) / v_u, unless v_c = v_u (`sf.explain_guidance`).
    Sources: Ho and Salimans 2022 (2207.12598), Eq. 6, with scale = 1 + w; Liu et al. 2022 (2206.01714), Eq. 11.
    """

    def __init__(
        self,
        inner: Model,
        scale: Scale = 1.0,
        interval: tuple[float, float] | None = None,
        negative: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(usable(inner, "Guidance"))
        self.scale, self.interval = _scale(scale), _interval(interval)
        self.negative = dict(negative) if negative else None
        if self.negative and isinstance(self.scale, dict):
            raise SfumatoError("A negative condition takes one scale, not one per condition.")

    def settings(self) -> tuple[Any, tuple[float, float] | None]:
        """(scale, interval) by which a tuned plan is found; what is no plain guidance is described in words."""
        if type(self) is Guided and self.negative is None and not isinstance(self.scale, tuple):
            return self.scale, self.interval
        given = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        words = (f"{name}={v!r}" for name, v in given.items() if isinstance(v, float | str | tuple | dict))
        return f"{type(self).__name__}({', '.join(words)})", None

    def _inside(self, t: Tensor) -> Tensor:
        """Whether t lies in the guidance interval, bool like t."""
        if self.interval is None:
            return torch.ones_like(t, dtype=torch.bool)
        logsnr = self.process.level(t)
        return (logsnr >= self.interval[0]) & (logsnr <= self.interval[1])

    def _scales(self, t: Tensor) -> Tensor:
        """The scale at times t, like t; 1 outside the interval."""
        knots = isinstance(self.scale, tuple)
        scale = _between(self.scale, self.process.level(t)) if knots else torch.full_like(t, self.scale)
        return torch.where(self._inside(t), scale, 1.0)

    def __call__(self, z: State, t: Time, /, **cond: Any) -> Any:
        cond, t = {name: value for name, value in cond.items() if value is not None}, as_time(t)
        if isinstance(self.scale, dict):
            return self._composed(z, t, cond, self.scale)
        scale = self._scales(t)
        if bool((scale == 1).all()):
            return self.inner(z, t, **cond)
        base, conditional = self.pair(z, t, cond)
        return self.combined(base, conditional, scale)

    def pair(self, z: State, t: Tensor, cond: Mapping[str, Any]) -> tuple[Any, Any]:
        """The beliefs (base, conditional)."""
        base, conditional = self._beliefs(z, t, self._told(cond, len(first_leaf(z)), first_leaf(z).device))
        return base, conditional

    def combined(self, base: Any, conditional: Any, scale: Tensor) -> Any:
        """The guided belief, at one scale or one per row."""
        return base.lerp(conditional, scale)

    def _told(self, cond: Mapping[str, Any], n: int, device: torch.device) -> list[dict[str, Any]]:
        """What the base and the conditional model are told."""
        self._require(cond)
        null = {name: value if name in self._kept else absent(value) for name, value in cond.items()}
        if self.negative is None:
            return [null, dict(cond)]
        negative = dict(resolve(self.inner, self.negative, n).to(device))
        more = {name: absent(value) for name, value in negative.items() if name not in cond}
        return [{**null, **negative}, {**cond, **more}]

    @property
    def _kept(self) -> set[str | None]:
        """What no model is without: what the call before leaves, the source of a pair, what an upscaler enlarges, and
        where a sequence has ended."""
        return {*LEFT, LOW, AUGMENTATION, MISSING, source_of(self.process)}

    def _require(self, cond: Mapping[str, Any]) -> None:
        if not cond.keys() - self._kept:
            names = ", ".join(declared(self.inner) or {"label": None})
            raise SfumatoError(f"Guidance needs a condition to guide to: pass one of {names}.")

    def _composed(self, z: State, t: Tensor, cond: dict[str, Any], scales: dict[str, float]) -> Any:
        """The belief under one scale per condition."""
        self._require(cond)
        wrong = next((name for name in scales if name not in cond), None)
        if wrong is not None:
            raise SfumatoError(f"The guidance scale names {wrong!r}, but the call passes {', '.join(cond)}.")
        inside = self._inside(t)
        if not bool(inside.any()):
            return self.inner(z, t, **cond)
        null = {name: absent(cond[name]) for name in scales}
        single = [{**cond, **{other: null[other] for other in null if other != name}} for name in scales]
        base, *each = self._beliefs(z, t, [{**cond, **null}, *single])
        guided = base
        for k, (w, one) in enumerate(zip(scales.values(), each, strict=True)):  # the mean of as many guided beliefs
            guided = guided.lerp(base.lerp(one, len(scales) * w), 1 / (k + 1))
        return guided if bool(inside.all()) else self.inner(z, t, **cond).lerp(guided, inside.to(t.dtype))

    def _beliefs(self, z: State, t: Tensor, conds: list[dict[str, Any]]) -> Any:
        """The beliefs under each set of conditions, from one batched call, which is faster on every device."""
        n = len(conds)
        every = {name: joined([cond[name] for cond in conds]) for name in conds[0]}
        return self.inner(cat_states([z] * n), torch.cat([t] * n) if t.ndim else t, **every).chunk(n)


class GuidedNumbers(Guided):
    """A way of guidance that is defined for real numbers, with one scale."""

    def __init__(self, inner: Model, scale: Scale, interval: Any, negative: Mapping[str, Any] | None) -> None:
        super().__init__(inner, scale, interval, negative)
        require_numbers(inner, type(self).__name__, "guide it with sf.guide")
        if isinstance(self.scale, dict):
            raise SfumatoError(f"{type(self).__name__} takes one scale, not one per condition.")


def _scale(scale: Any) -> Any:
    """A guidance scale as a number, a dict or knots. Raises SfumatoError for anything else."""
    try:
        if isinstance(scale, Mapping):
            made: Any = {str(name): float(w) for name, w in scale.items() if not isinstance(w, str)}
            numbers = list(made.values()) if len(made) == len(scale) else []
        elif isinstance(scale, Sequence) and not isinstance(scale, str):
            made = tuple((float(level), float(w)) for level, w in scale)
            rising = all(a < b for (a, _), (b, _) in pairwise(made)) and math.isfinite(sum(level for level, _ in made))
            numbers = [w for _, w in made] if rising and len(made) > 1 else []
        else:
            made = math.nan if isinstance(scale, str) else float(scale)
            numbers = [made]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if not numbers or not all(abs(w) <= LARGEST_SCALE for w in numbers):
        raise SfumatoError(
            "The guidance scale must be a finite number, or one per condition, or knots (logsnr, scale) of rising "
            f"logsnr, of at most {LARGEST_SCALE:g}, got {scale!r:.80}."
        )
    return made


def _interval(interval: Any) -> tuple[float, float] | None:
    """The ends of an interval in logsnr. Raises SfumatoError unless they increase."""
    try:
        ends = None if interval is None else tuple(float(end) for end in interval)
    except (TypeError, ValueError):
        ends = ()
    if ends is None or (len(ends) == 2 and ends[0] < ends[1]):
        return None if ends is None else (ends[0], ends[1])
    raise SfumatoError(f"The guidance interval must be two increasing logsnr values, got {interval!r:.80}.")


def _between(knots: tuple[tuple[float, float], ...], at: Tensor) -> Tensor:
    """The piecewise linear function through the knots (x, y), constant beyond them, like `at`."""
    x, y = torch.tensor(knots, dtype=torch.float64, device=at.device).T.contiguous()
    at = at.double().clamp(x[0], x[-1])
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])


def guide(
    model: Model,
    scale: Scale = 1.0,
    interval: tuple[float, float] | None = None,
    negative: Mapping[str, Any] | None = None,
) -> Any:
    """Classifier-free guidance: scale 1 is the conditional model, 0 the unconditional one. `scale` may also be one per
    condition, {"label": 3.0, "temperature": 1.5}, or knots ((logsnr, scale), ..). `interval` is in logsnr. `negative`:
    conditions to lead away from, {"label": "dog"}, in the place of none. Of a `Cascade` and of `UnCLIP` each stage is
    guided, to the conditions that it knows. Other ways are in `sf.guidance`."""
    if hasattr(model, "each_stage"):
        staged: Any = model

        def guided(stage: Any) -> Any:
            own = staged.for_stage(stage, scale)
            return stage if own == {} else Guided(stage, own, interval, staged.for_stage(stage, negative))

        return staged.each_stage(guided)
    return Guided(model, scale, interval, negative)
