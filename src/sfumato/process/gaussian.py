"""The Gaussian process, q(z_t | x) = N(alpha_t x, sigma_t^2 I), and how it interprets a network's output.

    jump       q(z_t | z_s) = N(a z_s, c^2),   a = alpha_t / alpha_s,   c^2 = sigma_t^2 - a^2 sigma_s^2
    posterior  q(z_s | z_t, x) = N(a sigma_s^2 / sigma_t^2 z_t + alpha_s c^2 / sigma_t^2 x,  c^2 sigma_s^2 / sigma_t^2)
    bridge     z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std xi
               std = eta * (the posterior's): eta 0 is DDIM, 1 is DDPM
    network    y = net(c_in z, -logsnr / 8),   c_in = 1 / sqrt(sigma^2 + alpha^2 sigma_data^2)
    loss       1/2 w / p |eps - eps_hat|^2 = 1/2 w / p (alpha / det)^2 |y - y_hat|^2,   y = a x + b eps

A network with twice the outputs also predicts the variance of an ancestral step, interpolated between its two limits:
Sigma = exp(v log beta + (1 - v) log beta_tilde), v = (1 + output) / 2.
Sources: Ho et al. 2020 (2006.11239), Eq. 6-7; Song et al. 2020 (2010.02502), Eq. 12 and 16; Kingma et al. 2021
(2107.00630), App. A; Karras et al. 2022 (2206.00364), Eq. 7 and Table 1; Nichol and Dhariwal 2021 (2102.09672), Eq. 15;
Kingma and Gao 2023 (2303.00848), Eq. 6.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sfumato import target as targets
from sfumato.belief import Estimate, Transition, ancestral, broadcast, reading
from sfumato.conditions import over_present
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError, an, suggest
from sfumato.noise import Noise
from sfumato.process.protocol import Density, Process, noise_level
from sfumato.registry import check, register
from sfumato.schedule import Schedule, Time, schedule_of
from sfumato.state import numbers_like

VARIANCES = ("fixed", "learned")
KEPT_TIMES = 4096  # most times for which a process caches coefficients
_LARGEST = 3e38  # about the largest float32, the dtype of losses

_Made = TypeVar("_Made", bound=tuple[Any, ...])


class Kernel(NamedTuple):
    """z_t = alpha z_s + sigma n."""

    alpha: Tensor
    sigma: Tensor


LARGEST_SIGMA_DATA = 1e9


class Additive:
    """z = alpha(t) x + sigma(t) eps under a schedule: the distribution of z, a network's inputs, the loss of a target.

    sigma_data: the standard deviation of the clean states; target: what the loss compares.
    """

    schedule: Schedule
    target: str
    sigma_data: float

    default_solver = "multistep"

    # -- the distribution of z ---------------------------------------------------------------------------------------

    @property
    def clock(self) -> Schedule:
        """The schedule, since the level is logsnr."""
        return self.schedule

    def level(self, t: Time) -> Tensor:
        """logsnr at times t, float64."""
        return self.schedule.logsnr(t)

    def prior(self, noise: Tensor) -> Tensor:
        """z_1 = sigma(1) noise ~ N(0, sigma(1)^2), where sampling starts."""
        return broadcast(self.schedule.sigma(1.0), noise) * noise

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t = alpha x + sigma eps; x (B, ...), t a number or (B,), noise: eps like x, or a `Noise` source."""
        alpha, sigma = self.schedule(t)
        return broadcast(alpha, x) * x + broadcast(sigma, x) * numbers_like(noise, x)

    def jump(self, s: Time, t: Time) -> Kernel:
        """q(z_t | z_s) for s <= t."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.schedule(s), self.schedule(t)
        alpha = alpha_t / alpha_s
        return Kernel(alpha, (sigma_t**2 - alpha**2 * sigma_s**2).clamp_min(0.0).sqrt())

    def posterior(self, s: Time, t: Time) -> Transition:
        """q(z_s | z_t, x) for s <= t and sigma_t > 0."""
        return ancestral(*self.schedule(t), *self.schedule(s), eta=1.0)

    def rescheduled(self, schedule: Schedule) -> Any:
        """The same process under another schedule."""
        return dataclasses.replace(self, schedule=schedule)  # type: ignore[type-var]

    def same_level(self, z: Tensor, t: Time, other: Additive) -> tuple[Tensor, Tensor]:
        """(z', t') of `other` with the logsnr of (z, t): z' = z n'/n, n = sqrt(alpha^2 + sigma^2); t' is clamped to the
        ends of the other schedule."""
        alpha, sigma = self.schedule(t)
        other_t = other.schedule.time(self.schedule.logsnr(t))
        other_alpha, other_sigma = other.schedule(other_t)
        scale = torch.sqrt((other_alpha**2 + other_sigma**2) / (alpha**2 + sigma**2))
        return broadcast(scale, z) * z, other_t

    # -- inputs and outputs of a network -----------------------------------------------------------------------------

    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The network's inputs (c_in z, noise level)."""
        c_in, level = self._at("input", t, z.device, lambda: self.scaling(t, z.device))
        return broadcast(c_in, z) * z, level

    def scaling(self, t: Time, device: torch.device) -> tuple[Tensor, Tensor]:
        """(c_in, noise level) at times t."""
        alpha, sigma = self.schedule(t)
        c_in = 1 / torch.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        return c_in, self.noise_level(t).to(device)

    def noise_level(self, t: Time) -> Tensor:
        """-logsnr / 8."""
        return noise_level(self.schedule.logsnr(t))

    def _at(self, kind: str, t: Time, device: torch.device, make: Callable[[], _Made]) -> _Made:
        """make(), cached per (kind, t, device) for times that are numbers, which a sampler uses again."""
        if not isinstance(t, float | int) or torch.compiler.is_compiling():
            return make()
        kept: dict[Any, Any] = self.__dict__.setdefault("_kept", {})
        key = (kind, t, device)
        if key not in kept:
            with torch.inference_mode(False), torch.no_grad():
                made = make()
            if len(kept) >= KEPT_TIMES:
                kept.clear()
            kept[key] = made
        return kept[key]

    # -- the loss ----------------------------------------------------------------------------------------------------

    def loss(
        self,
        belief: Estimate,
        x: Tensor,
        noise: Noise | Tensor,
        weight: Callable[[Tensor], Tensor] | None,
        times: Density,
        here: Tensor | None = None,
    ) -> Tensor:
        """1/2 w / p |eps - eps_hat|^2, (B,), computed from the error of the target, without loss of precision.

        weight None: the plain squared error of the target, 1/2 |y - y_hat|^2. here: 1 where values are present, 0 where
        they are missing (`conditions.missing`).
        """
        eps, t = numbers_like(noise, x), belief.t.expand(len(x))
        row = targets.row(self.target, self.schedule, t, self.sigma_data)
        y = broadcast(row.a, x) * x + broadcast(row.b, x) * eps
        error = over_present((belief.target(self.target) - y).square(), here).flatten(1).sum(1)
        if weight is None:
            return 0.5 * error
        scale = factor(self.schedule, row, t, times, weight)
        if scale.device.type == "cpu":  # on an accelerator the check would force a synchronisation
            finite(scale.detach(), self.schedule.logsnr(t))
        return 0.5 * scale.to(error) * error

    def prior_kl(self, x: Tensor, std: float | None = None) -> Tensor:
        """KL(q(z_1 | x) || N(0, std^2 I)), float64 (B,); std defaults to sigma(1) (`objectives.prior`)."""
        if std is not None and not 0 < std < math.inf:
            raise SfumatoError(f"The prior's standard deviation must be positive and finite, not {std:g}.")
        alpha, sigma = self.schedule(1.0)
        scale = sigma if std is None else torch.full_like(sigma, std)
        square = x.flatten(1).to(torch.float64).square().sum(1)
        ratio = (sigma / scale) ** 2
        spread = math.prod(x.shape[1:]) * (ratio - 1 - ratio.log())
        return 0.5 * ((alpha / scale).to(square.device) ** 2 * square + spread.to(square.device))


@register("process", "gaussian")
@dataclasses.dataclass(frozen=True)
class Gaussian(Additive):
    """z = alpha(t) x + sigma(t) eps under a schedule, for real-valued data of any shape.

    target: what the network predicts, one of x, eps, score, v, velocity, F. sigma_data: the standard deviation of the
    normalised data. variance: "learned" for a network with `outputs=2` (twice the channels, or elements of a vector),
    whose second half becomes `belief.variance_share`; "fixed" for one that predicts only the target.
    """

    schedule: Schedule
    target: str = "v"
    sigma_data: float = 1.0
    variance: str = "fixed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", schedule_of(self.schedule))
        check("target", str(self.target))
        if self.variance not in VARIANCES:
            raise SfumatoError(
                f"Unknown variance {self.variance!r} of a Gaussian process: {suggest(self.variance, VARIANCES)}"
            )
        try:
            object.__setattr__(self, "sigma_data", float(self.sigma_data))
        except (TypeError, ValueError, OverflowError):
            raise SfumatoError(f"sigma_data must be a number, not {self.sigma_data!r:.60}.") from None
        if not 0 < self.sigma_data <= LARGEST_SIGMA_DATA:
            raise SfumatoError(
                f"sigma_data must be above 0 and at most {LARGEST_SIGMA_DATA:g}, not {self.sigma_data:g}: it is the "
                "standard deviation of data that are usually normalised to 1."
            )

    # -- the output of a network ---------------------------------------------------------------------------------------

    def split(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split a network's output into (target, v of the step variance or None if not learned), both like z."""
        if self.variance == "fixed":
            return y, None
        if y.shape[1] != 2 * z.shape[1]:
            raise SfumatoError(
                f"A learned variance needs a network with {2 * z.shape[1]} outputs along the first axis, twice as many "
                f"as z; this one has {y.shape[1]}. Build it with outputs=2."
            )
        y, share = y.chunk(2, dim=1)
        return y, (1 + share) / 2

    def prediction(self, y: Tensor, z: Tensor) -> Tensor:
        """The target part of a network's output, like z."""
        return self.split(y, z)[0]

    def read(self, y: Tensor, z: Tensor, t: Time) -> Estimate:
        """The belief about z at time t from the network's output y (like z, or with twice the channels)."""
        y, share = self.split(y, z)
        known = None
        if isinstance(t, float | int):
            known = self._at("reading", t, z.device, lambda: reading(self.target, self.schedule, t, self.sigma_data))
        return Estimate(
            z, t, self.schedule, y=y, sigma_data=self.sigma_data, known=known, variance_share=share, named=self.target,
            indirect=self.indirect,
        )  # fmt: skip

    @functools.cached_property
    def indirect(self) -> bool:
        """Whether the target carries no information on x in pure noise."""
        return float(targets.row(self.target, self.schedule, 1.0).a) == 0

    def check_net(self, net: Any) -> None:
        """Raise SfumatoError if the target is undefined at the schedule's end or the network has the wrong outputs."""
        targets.check(self.target, self.schedule)
        outputs, expected = getattr(net, "outputs", None), 1 if self.variance == "fixed" else 2
        if isinstance(outputs, int) and outputs != expected:
            raise SfumatoError(
                f"A denoiser with variance={self.variance!r} needs a network with outputs={expected}, not {outputs}."
            )

    # -- data and files ----------------------------------------------------------------------------------------------

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a state: that of a sample."""
        return tuple(shape)

    def net_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the network's input: that of a sample."""
        return tuple(shape)

    def sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample: that of the network's input."""
        return tuple(shape)

    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec unchanged: real data are normalised to mean 0 and standard deviation 1."""
        return spec

    def data(self, x: Tensor) -> Tensor:
        """x itself: any real numbers are clean states."""
        return x

    def table(self, x: Tensor) -> Tensor:
        """x itself: a clean state is already data."""
        return x

    def config(self) -> dict[str, Any]:
        args = {"schedule": self.schedule.config(), "target": self.target, "sigma_data": self.sigma_data}
        return {"name": "Gaussian", "args": args | {"variance": self.variance}}


def require_numbers(model: Any, what: str, instead: str) -> None:
    """Raise SfumatoError unless the model's process is Gaussian; `what` needs it, `instead` names the alternative."""
    process = getattr(model, "process", model)
    if not isinstance(process, Process):
        raise SfumatoError(
            f"{what} is asked of a model, such as sf.load(path) gives, not of {an(type(model).__name__)}."
        )
    if not isinstance(process, Gaussian):
        raise SfumatoError(
            f"{what} is defined only for a Gaussian process, not for {type(process).__name__}: {instead}."
        )


def factor(
    schedule: Schedule, row: targets.Row, t: Tensor, times: Density, weight: Callable[[Tensor], Tensor]
) -> Tensor:
    """w / p (alpha / det)^2 at times t for a target's row there: the loss is 1/2 of it times |y - y_hat|^2."""
    logsnr = schedule.logsnr(t)
    return weight(logsnr) / times.density(logsnr, schedule) * targets.error_scale(row, *schedule(t))


def finite(factors: Tensor, logsnr: Tensor) -> None:
    """Raise SfumatoError if a loss factor exceeds the range of float32; both tensors have the same shape."""
    wrong = ~(factors.abs() <= _LARGEST)
    if bool(wrong.any()):
        raise SfumatoError(
            f"The loss weight divided by the time density is {float(factors[wrong][0]):g} at logsnr "
            f"{float(logsnr[wrong][0]):.4g}, beyond float32: avoid that noise level, or use another weight, time "
            "density or target."
        )
