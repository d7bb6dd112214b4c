"""Model -> Model: another schedule, experts per range of noise levels, gradients. Guidance is in `guidance`."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.belief import Codes, Estimate, Logits
from sfumato.conditions import KNOWN, Given, uncarried
from sfumato.errors import SfumatoError
from sfumato.model import Model, hears, usable
from sfumato.process import Gaussian, alphabet
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, as_time, schedule_of
from sfumato.state import State


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

    @property
    def compute_dtype(self) -> Any:
        """The dtype in which the inner model's network computes; set for the inner model."""
        return self.inner.compute_dtype  # type: ignore[attr-defined]

    @compute_dtype.setter
    def compute_dtype(self, low: Any) -> None:
        self.inner.compute_dtype = low  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


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


class Known(Wrapped):
    """p(x_i = k | z) = 1 for the symbols k that are known, of a model of symbols that are vectors (`process.Embedded`).

    x: int64 like the samples of a batch, (B, *shape), -1 where nothing is known. A network that hears known symbols
    (`conditions.KNOWN`, as `loss="cross-entropy(known=0.5)"` trains it) is told their vectors without noise, and says
    p(x_i | z, known). Another one hears them at the level of noise of the others alone, z = alpha E_k + sigma eps as
    x_hat = E_k leads to: the replacement of Song et al. 2021 (2011.13456, App. I), which others follow too little. With
    an exact model, where p(x_2 | x_1) is .91, x_2 is drawn with .64 by replacement.
    """

    def __init__(self, inner: Model, x: Tensor) -> None:
        super().__init__(inner)
        self.x = x

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Codes:
        x = self.x.to(z.device)[..., None]
        if hears(self.inner, KNOWN):
            some = alphabet.as_channels((x >= 0).expand(*x.shape[:-1], self.process.dim))
            field = self.process.embedded(x[..., 0].clamp_min(0), z.dtype) * some
            cond[KNOWN] = Given.of(field)
        belief = self.inner(z, t, **cond)
        assert isinstance(belief, Codes)
        law = belief.law
        only = torch.where(torch.arange(law.prob.shape[-1], device=z.device) == x, 0.0, -torch.inf).to(law.prob)
        return Codes(Logits(torch.where(x < 0, law.log_prob, only), law.z, law.t, law.process), self.process)


@register("model", "Experts")
class Experts(Wrapped):
    """belief = (1 - w) inner + w refiner, w = clip((logsnr - boundary) / width + 1/2, 0, 1), a step at width 0.

    `inner` is the expert of the noisier levels, logsnr < boundary, `refiner` that of the others; nest for more than
    two. Each is called only where its weight is not 0. Source: Balaji et al. 2022 (2211.01324); Podell et al. 2023
    (2307.01952), base and refiner. Raises SfumatoError for experts of other processes, units or conditions.
    """

    def __init__(self, inner: Model, refiner: Model, boundary: float, width: float = 0.0) -> None:
        super().__init__(usable(inner, "The first expert"))
        self.refiner = alike(usable(refiner, "The second expert"), inner)
        self.boundary, self.width = float(boundary), float(width)
        if not (math.isfinite(self.boundary) and 0 <= self.width < math.inf):
            raise SfumatoError(
                f"Experts need a finite boundary in logsnr and a width of at least 0, got {boundary!r} and {width!r}."
            )

    def _weight(self, t: Tensor) -> Tensor:
        """The weight of the refiner at times t, like t."""
        beyond = self.process.level(t) - self.boundary
        return (beyond / self.width + 0.5).clamp(0, 1) if self.width else (beyond >= 0).to(t.dtype)

    def __call__(self, z: State, t: Time, /, **cond: Any) -> Any:
        weight, cond = self._weight(as_time(t)), uncarried(cond)
        if bool((weight == 0).all()):
            return self.inner(z, t, **cond)
        if bool((weight == 1).all()):
            return self.refiner(z, t, **cond)
        return self.inner(z, t, **cond).lerp(self.refiner(z, t, **cond), weight)


def alike(model: Any, other: Any) -> Any:
    """`model` itself. Raises SfumatoError unless its process, shape and units are those of the other model."""
    facts = [(m.process.schedule, getattr(m, "shape", None)) for m in (model, other)]
    specs = [getattr(m, "spec", None) for m in (model, other)]
    units = [None if spec is None else spec.normaliser for spec in specs]
    if facts[0] != facts[1] or (None not in units and units[0] != units[1]):
        raise SfumatoError(
            "Two models act on one state here, and they differ in schedule, shape or units of their data: train both "
            "on the same data, and bring one to the other's schedule with sf.Rescheduled(model, schedule)."
        )
    return model


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
        x, eps, share, carried = checkpoint(self._signals, z, t, cond, use_reentrant=False)
        return Estimate(
            z, t, self.process.schedule, x=x, eps=eps, variance=lambda: self.inner(z, t, **cond).variance,
            variance_share=share, carried=carried,
        )  # fmt: skip

    def _signals(self, z: Tensor, t: Time, cond: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        belief = self.inner(z, t, **cond)
        return belief.x, belief.eps, belief.variance_share, belief.carried


def differentiable(model: Model, calls: int | Literal["all"] = "all", checkpoint: bool = True) -> Unrolled:
    """A model with differentiable samples: `sf.sample` then gives d(samples) / d(weights, z, conditions).

    calls: differentiate only the last K calls and treat earlier ones as constants (AlignProp, 2310.03739; DRaFT-K,
    2309.17400), or "all". checkpoint=True recomputes each call in the backward pass instead of storing it.
    """
    return Unrolled(model, calls, checkpoint)
