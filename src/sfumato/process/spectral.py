"""Gaussian processes whose coefficients in an orthonormal basis have a schedule each: blur, heat, coloured noise.

    c = Q x - m,   z_f = alpha_f(t) c_f + sigma_f(t) eps_f,   no logsnr_f = log(alpha_f^2 / sigma_f^2) rises
    loss    1/2 w / p sum_f rho_f |eps - eps_hat|_f^2,   rho_f = dlogsnr_f / dlogsnr: with w = 1 the bound, in nats
    clock   sigmoid(logsnr) = mean_f sigmoid(logsnr_f + log P_f), which is what a network hears
    prior   N(0, alpha_f(1)^2 P_f + sigma_f(1)^2)

States are the coefficients, of the shape of a sample: beliefs, plans and likelihoods are those of numbers, with vectors
as coefficients. A network is given Q^T z, and says its target in the space of samples.
P_f and m are the variance and mean of each coefficient, as measured on data. Where alpha_f(1) is not small, as in heat
dissipation, the prior is blurred data: with P_f it is the Gaussian of the data's spectrum, and without there is none.
With target F, a network that says 0 is the exact denoiser of that Gaussian (`sigma_data` is sqrt(P_f)).
Sources: Hoogeboom and Salimans 2022 (2209.05557); Rissanen et al. 2022 (2206.13397); Jing et al. 2022 (2205.01490).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor

from sfumato import target as targets
from sfumato.belief import Estimate, broadcast
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.process.bases import Basis, principal
from sfumato.process.curves import Blurred, Curves, Heated, Staggered, Tinted, Total
from sfumato.process.gaussian import Additive
from sfumato.process.protocol import Density, noise_level
from sfumato.registry import check, register
from sfumato.schedule import Schedule, Time, schedule_of
from sfumato.state import numbers_like

_FAINT = 1e-2  # the share of noise that signal may be at t = 1 of a process whose data have no known power
_ANGLES, _RISE = 2049, 1e-6  # times of `angles`; how much they rise at least
_LEAST = 1e-6  # of the mean power, lest a coefficient that never varies have an infinite logsnr


@dataclasses.dataclass(frozen=True)
class Spectral(Additive):
    """The base of the processes below.

    schedule: (a, s), or its name; afterwards the curves of all coefficients, and (a, s) is `base`. shape: of a sample.
    basis, channels: the kind and the channels of its `Basis`. target: of the network, x, eps, score, v, velocity or F.
    power, mean: of each coefficient, in the order of a sample's numbers, as `fitted` finds them; without, 1 and 0.
    """

    schedule: Schedule = dataclasses.field(compare=False)
    shape: tuple[int, ...]
    basis: str = "dct"
    channels: tuple[Any, ...] = ()
    target: str = "F"
    power: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    base: Schedule = dataclasses.field(init=False)

    default_solver = "multistep-in-t"

    def __post_init__(self) -> None:
        base = self.schedule.base if isinstance(self.schedule, Curves) else schedule_of(self.schedule)
        check("target", str(self.target))
        for name in ("shape", "channels"):
            object.__setattr__(self, name, getattr(self.transform, name))
        size = math.prod(self.shape)
        for name in ("power", "mean"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) not in (0, size) or not all(map(math.isfinite, values)):
                raise SfumatoError(f"{name} must be one finite number for each of {size} coefficients.")
            object.__setattr__(self, name, values)
        if self.power and min(self.power) <= 0:
            raise SfumatoError("The power of every coefficient must be above 0: measure it by process.fitted(x).")
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "schedule", self.curves(base))

    @abc.abstractmethod
    def curves(self, base: Schedule) -> Curves:
        """The schedules of all coefficients."""

    @functools.cached_property
    def transform(self) -> Basis:
        """The basis."""
        return Basis(self.shape, self.basis, self.channels)

    def fitted(self, x: Tensor) -> Self:
        """The process with power and mean of its coefficients as measured on samples x (n, *shape), n at least 2,
        and the directions of the basis pca."""
        if len(x) < 2:
            raise SfumatoError(f"The power of coefficients takes at least 2 samples, not {len(x)}.")
        if self.basis == "pca" and not self.channels:
            return dataclasses.replace(self, channels=principal(x, "pca").channels).fitted(x)
        c = self.transform.analyse(x.to(torch.float64)).flatten(1)
        power = c.var(0)
        power = power.clamp_min(_LEAST * float(power.mean()))
        return dataclasses.replace(self, power=tuple(power.tolist()), mean=tuple(c.mean(0).tolist()))

    @functools.cached_property
    def clock(self) -> Total:
        """The schedule of the total, whose logsnr is the level of the process."""
        return Total(self._curves, self._power if self._power is not None else 1.0)

    @property
    def _curves(self) -> Curves:
        assert isinstance(self.schedule, Curves)
        return self.schedule

    @functools.cached_property
    def _power(self) -> Tensor | None:
        if not self.power:
            return None
        return torch.tensor(self.power, dtype=torch.float64).reshape(1, *self.shape)

    @functools.cached_property
    def _mean(self) -> Tensor | float:
        return torch.tensor(self.mean, dtype=torch.float64).reshape(1, *self.shape) if self.mean else 0.0

    @functools.cached_property
    def sigma_data(self) -> Tensor:  # type: ignore[override]
        """The standard deviation of each coefficient, (1, *shape), or 1."""
        return torch.ones((), dtype=torch.float64) if self._power is None else self._power.sqrt()

    @functools.cached_property
    def angles(self) -> Tensor:
        """arctan(e^(-logsnr / 2)) of the clock at `times`, float64; it rises."""
        return torch.atan(torch.exp(-0.5 * self.clock.logsnr(self.times))) + _RISE * self.times

    @functools.cached_property
    def times(self) -> Tensor:
        """The times of `angles`, between which they are read by straight lines."""
        return torch.linspace(0, 1, _ANGLES, dtype=torch.float64)

    # -- the distribution of z ---------------------------------------------------------------------------------------

    def level(self, t: Time) -> Tensor:
        """logsnr of the clock at times t, float64."""
        return self.clock.logsnr(t)

    @functools.cached_property
    def _prior(self) -> tuple[Tensor, Tensor]:
        """(alpha, standard deviation of the prior) at t = 1; SfumatoError if the prior is data of unknown law."""
        alpha, sigma = self.schedule(1.0)
        if self._power is not None:
            return alpha, torch.sqrt(alpha**2 * self._power + sigma**2)
        if bool((alpha > _FAINT * sigma).any()):
            raise SfumatoError(
                f"At t = 1 of {type(self).__name__} the data are still there, blurred: give the power of its "
                "coefficients, process.fitted(x), whose Gaussian is then the prior, or pass z."
            )
        return alpha, sigma

    def prior(self, noise: Tensor) -> Tensor:
        """z_1 ~ N(0, alpha_f(1)^2 P_f + sigma_f(1)^2), where sampling starts."""
        return broadcast(self._prior[1], noise) * noise

    def prior_kl(self, x: Tensor, std: float | None = None) -> Tensor:
        """KL(q(z_1 | c) || prior), float64 (B,), for coefficients c."""
        if std is not None:
            raise SfumatoError("The prior of a spectral process has a deviation for each coefficient: leave out std.")
        alpha, scale = (value.to(x.device) for value in self._prior)
        ratio = (self.schedule.sigma(1.0).to(x.device) / scale) ** 2
        each = (alpha / scale * x.to(torch.float64)).square() + ratio - 1 - ratio.log()
        return 0.5 * each.flatten(1).sum(1)

    # -- inputs and outputs of a network -----------------------------------------------------------------------------

    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The network's inputs (Q^T c_in z, noise level)."""
        scaled, level = super().inputs(z, t)
        return self.transform.synthesise(scaled), level

    def scaling(self, t: Time, device: torch.device) -> tuple[Tensor, Tensor]:
        """(c_in, noise level) at times t; one c_in for all coefficients, so that a network sees a sample."""
        alpha, sigma = self.schedule(t)
        square = (sigma**2 + (alpha * self.sigma_data) ** 2).flatten(1).mean(1)
        return square.rsqrt().to(device), self.noise_level(t).to(device)

    def noise_level(self, t: Time) -> Tensor:
        """-logsnr / 8 of the clock."""
        return noise_level(self.clock.logsnr(t))

    def prediction(self, y: Tensor, z: Tensor) -> Tensor:
        """The target's coefficients, like z, from a network's output."""
        return self.transform.analyse(y)

    def read(self, y: Tensor, z: Tensor, t: Time) -> Estimate:
        """The belief about the coefficients from the network's output y, like z."""
        return Estimate(z, t, self.schedule, y=self.prediction(y, z), sigma_data=self.sigma_data, named=self.target)

    def check_net(self, net: Any) -> None:
        """Raise SfumatoError if the target does not determine the coefficients, or the network has other outputs."""
        row, (alpha, sigma) = targets.row(self.target, self.schedule, 1.0, self.sigma_data), self.schedule(1.0)
        if not bool(row.a.isfinite().all()) or bool((row.b * alpha == row.a * sigma).any()):
            raise SfumatoError(
                f"Target {self.target!r} cannot be read at t = 1 of {type(self).__name__}, where coefficients have no "
                "signal: use target='v', 'x' or 'F'."
            )
        outputs = getattr(net, "outputs", None)
        if isinstance(outputs, int) and outputs != 1:
            raise SfumatoError(f"A spectral process needs a network with outputs=1, not {outputs}.")

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
        """1/2 w / p sum_f rho_f |eps - eps_hat|_f^2, (B,), computed from the error of the target.

        weight None: the plain squared error of the target, 1/2 |y - y_hat|^2. SfumatoError for missing values (`here`).
        """
        if here is not None:
            raise SfumatoError("A sample with missing values has no coefficients: use the gaussian process.")
        eps, t = numbers_like(noise, x), belief.t.expand(len(x))
        row = targets.row(self.target, self.schedule, t, self.sigma_data)
        y = broadcast(row.a, x) * x + broadcast(row.b, x) * eps
        error = (belief.target(self.target) - y).square()
        if weight is None:
            return 0.5 * error.flatten(1).sum(1)
        logsnr = self.clock.logsnr(t)
        level = weight(logsnr) / times.density(logsnr, self.clock)
        share = self.shares(t) * targets.error_scale(row, *self.schedule(t))
        return 0.5 * level.to(error) * (share.to(error) * error).flatten(1).sum(1)

    def shares(self, t: Time) -> Tensor:
        """rho_f = dlogsnr_f / dlogsnr of the clock at times t, (B, *shape); 0 where a coefficient is noise alone."""
        each, total = self.schedule.dlogsnr(t), self.clock.dlogsnr(t)
        return torch.where(each.isinf(), 0.0, each / total.reshape(-1, *[1] * (each.ndim - 1)))

    # -- data and files ----------------------------------------------------------------------------------------------

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a state: that of a sample, which must be that of the basis."""
        if tuple(shape) != self.shape:
            raise SfumatoError(f"The basis is of samples of shape {self.shape}, and these have {tuple(shape)}.")
        return tuple(shape)

    net_shape = state_shape
    sample_shape = state_shape

    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec unchanged: real data are normalised to mean 0 and standard deviation 1."""
        return spec

    def data(self, x: Tensor) -> Tensor:
        """The coefficients Q x - m of samples x (B, *shape)."""
        self.state_shape(tuple(x.shape[1:]))
        c = self.transform.analyse(x)
        return c - self._mean.to(c) if isinstance(self._mean, Tensor) else c

    def table(self, x: Tensor) -> Tensor:
        """The samples Q^T (c + m) of coefficients, the inverse of `data`; for noisy ones a noisy sample."""
        return self.transform.synthesise(x + self._mean.to(x) if isinstance(self._mean, Tensor) else x)

    def config(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
        return {"name": type(self).__name__, "args": own | {"schedule": self.base.config()}}


@register("process", "blur")
@final
@dataclasses.dataclass(frozen=True)
class Blur(Spectral):
    """Blurring diffusion: alpha_f = a ((1 - floor) e^{-l_f tau} + floor), sigma_f = s.

    tau = (width sin^2(pi t / 2))^2 / 2, width that of the blur at t = 1, in places; floor keeps every alpha_f above 0.
    """

    width: float = 20.0
    floor: float = 0.001

    def curves(self, base: Schedule) -> Curves:
        if not self.width > 0 or not 0 < self.floor < 1:
            raise SfumatoError(f"Blur needs width > 0 and 0 < floor < 1, got {self.width:g} and {self.floor:g}.")
        return Blurred(base, self.transform.eigenvalues, float(self.width), float(self.floor))


@register("process", "heat")
@final
@dataclasses.dataclass(frozen=True)
class Heat(Spectral):
    """Inverse heat dissipation: alpha_f = e^{-l_f tau}, sigma_f = noise; the noise stays, and the picture dissolves.

    The blur grows from 0 to `width` places, in equal factors above `least`. The mean of a sample stays at all times, so
    that the prior is the Gaussian of `power`. The schedule is not used.
    """

    width: float = 20.0
    least: float = 0.5
    noise: float = 0.01

    def curves(self, base: Schedule) -> Curves:
        if not 0 < self.least < self.width or not self.noise > 0:
            raise SfumatoError(
                f"Heat needs 0 < least < width and noise > 0, got {self.least:g}, {self.width:g} and {self.noise:g}."
            )
        made = (float(self.width), float(self.least), float(self.noise))
        return Heated(base, self.transform.eigenvalues, *made)


@register("process", "coloured")
@final
@dataclasses.dataclass(frozen=True)
class Coloured(Spectral):
    """Coloured noise: sigma_f = s(t) c_f, c_f^2 ~ (f + 1 / largest side)^-exponent, of mean 1.

    exponent: 0 white, 2 red as pictures are, so that all frequencies fall together, below 0 blue. equal: c_f^2 is the
    data's own `power` instead (EqualSNR, 2505.11278), white as long as that is not known.
    """

    exponent: float = 1.0
    equal: bool = False

    def curves(self, base: Schedule) -> Curves:
        if self.equal:
            colour = torch.ones(1, *self.shape, dtype=torch.float64) if self._power is None else self._power
        else:
            colour = (self.transform.frequency + 1 / max(self.shape)) ** -float(self.exponent)
        return Tinted(base, 0.5 * (colour / colour.mean()).log())


@register("process", "subspace")
@final
@dataclasses.dataclass(frozen=True)
class Subspace(Spectral):
    """Subspace diffusion: coefficients follow the schedule at min(t / t_f, 1), and are noise alone from t_f on.

    Curves have a kink at t_f, across which a solver and the likelihood by the ODE take more steps.

    t_f is 1 for constants and falls as 1 / (1 + (f / cutoff)^2) to `least`: late in time only a subspace of low
    frequencies is left. cutoff: in cycles per place, of 0.5 at most.
    """

    cutoff: float = 0.25
    least: float = 0.3

    def curves(self, base: Schedule) -> Curves:
        if not self.cutoff > 0 or not 0 < self.least <= 1:
            raise SfumatoError(f"Subspace needs cutoff > 0 and 0 < least <= 1, got {self.cutoff:g} and {self.least:g}.")
        left = 1 / (1 + (self.transform.frequency / self.cutoff) ** 2)
        return Staggered(base, left.clamp_min(self.least))
