"""Noise schedules: t -> (alpha, sigma) for z = alpha(t) x + sigma(t) eps, from data at t = 0 to noise at t = 1.

    logsnr = log(alpha^2 / sigma^2)
    f = d log alpha / dt,   g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 dlogsnr/dt

Every quantity is computed in float64. A schedule implements the curve, its rates and its inverse; the rest is derived
here.
Sources: Song et al. 2021 (2011.13456) for VP, VE and sub-VP; Kingma et al. 2021 (2107.00630) for logsnr.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.registry import make

Time = Tensor | float | int

# Limits that replace an infinite logsnr, one for each use; other values would change samples and losses.
NODE_LIMIT = 12.0  # nodes and clocks of solvers, sigma/alpha from exp(-6) to exp(6): further out a single step suffices
DRAWN_LIMIT = 15.0  # training levels: further out the loss is constant to a relative 3e-7
INPUT_LIMIT = 40.0  # network inputs: further out a state is clean or pure noise in double precision


def as_time(t: Time) -> Tensor:
    """A time or logsnr as a float64 tensor, on its own device."""
    return torch.as_tensor(t, dtype=torch.float64)


def require(holds: bool, schedule: Schedule, rule: str) -> None:
    """Raise SfumatoError, naming the rule, unless it holds for a schedule's arguments."""
    if not holds:
        raise SfumatoError(f"{type(schedule).__name__} needs {rule}.")


def schedule_of(spec: Any) -> Schedule:
    """The schedule itself, or the one that a name describes: "cosine", "ve(sigma_max=80)"."""
    schedule = make("schedule", spec)
    if not isinstance(schedule, Schedule):
        raise SfumatoError(f"A noise schedule must be one of sf.schedules or its name, not {spec!r:.80}.")
    return schedule


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """A curve t -> (alpha, sigma). Subclasses implement the curve, its rates and the inverse of its logsnr."""

    @abc.abstractmethod
    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at float64 times."""

    @abc.abstractmethod
    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt) at float64 times, in closed form."""

    @abc.abstractmethod
    def curve_time(self, logsnr: Tensor) -> Tensor:
        """t with logsnr(t) = logsnr; arbitrary beyond the ends, since `time` clamps."""

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        return self.curve(as_time(t))

    def alpha(self, t: Time) -> Tensor:
        return self(t)[0]

    def sigma(self, t: Time) -> Tensor:
        return self(t)[1]

    def logsnr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2); +inf where sigma = 0 and -inf where alpha = 0."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def time(self, logsnr: Time) -> Tensor:
        """The inverse of `logsnr`, clamped to [0, 1]."""
        return self.curve_time(as_time(logsnr)).clamp(0.0, 1.0)

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt)."""
        return self.curve_rates(as_time(t))

    def dlogsnr(self, t: Time) -> Tensor:
        """d logsnr/dt = 2 (alpha'/alpha - sigma'/sigma); -inf at an end with alpha = 0 or sigma = 0."""
        (alpha, sigma), (da, ds) = self(t), self.rates(t)
        return torch.where((alpha == 0) | (sigma == 0), -torch.inf, 2 * (da / alpha - ds / sigma))

    def drift(self, t: Time) -> Tensor:
        """f = d log alpha/dt of dz = f z dt + g dw; -inf where alpha = 0."""
        return self.rates(t)[0] / self(t)[0]

    def diffusion(self, t: Time) -> Tensor:
        """g^2 = 2 sigma (sigma' - f sigma)."""
        (alpha, sigma), (da, ds) = self(t), self.rates(t)
        # at sigma = 0 sigma' of a VP curve is infinite; there alpha^2 + sigma^2 = 1 gives g^2 = -2 f
        vp_start = (sigma == 0) & ds.isinf()
        return torch.where(vp_start, -2 * da / alpha, 2 * sigma * (ds - da / alpha * sigma))

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """(logsnr at t = 1, logsnr at t = 0), possibly infinite."""
        return float(self.logsnr(1.0)), float(self.logsnr(0.0))

    def config(self) -> dict[str, Any]:
        """A JSON-able description that `from_config` reads."""
        args: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Schedule):
                value = value.config()
            elif callable(value):
                raise SfumatoError(
                    f"{type(self).__name__} contains a Python function and cannot be saved: use a named schedule."
                )
            args[field.name] = list(value) if isinstance(value, tuple) else value
        return {"name": type(self).__name__, "args": args}
