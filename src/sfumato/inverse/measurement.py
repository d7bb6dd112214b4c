"""One measurement of a model's sample, and what the model believes about it.

y = A(x) + s n       in the model's units: x = normaliser(z), and y and s over the mean deviation of the data
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.belief import broadcast
from sfumato.errors import SfumatoError
from sfumato.inverse.operators import Operator
from sfumato.normaliser import Normaliser
from sfumato.process.gaussian import require_numbers
from sfumato.schedule import NODE_LIMIT, Time, as_time

_OF_SYMBOLS = "give what is known of a text to sf.sample_text as prompt or infill, of a table to sf.impute"


class Measurement:
    """y = A(x) + s n about a clean state x of the model.

    y: (*measured), in the units of the data, as is the standard deviation s of its noise, a number or like y.
    normalised: x, y and s are in the model's own units.
    """

    def __init__(self, model: Any, y: Any, operator: Operator, noise: Any = 0.0, normalised: bool = False) -> None:
        require_numbers(model, "A posterior given a measurement", _OF_SYMBOLS)
        spec = None if normalised else getattr(model, "spec", None)
        if not isinstance(operator, Operator):
            raise SfumatoError(f"The operator is one of sf.operators, such as Map(f), not {operator!r:.80}.")
        shape = getattr(model, "shape", None)
        if shape is None:
            raise SfumatoError("The model does not define the shape of a sample, which a measurement needs.")
        self.operator, self.shape = operator, tuple(shape)
        self._units: Normaliser | None = None if spec is None else spec.normaliser
        self.linear, self.unit = operator.linear, 1.0
        if self._units is not None:
            affine = self._units.kind == "affine"
            self.linear = self.linear and affine
            self.unit = sum(self._units.std) / len(self._units.std) if affine else 1.0
        self.y = self._checked(operator.observed(torch.as_tensor(y)).to(torch.float64) / self.unit)
        self.noise = torch.as_tensor(noise, dtype=torch.float64) / self.unit
        self._made: dict[str, Any] = {}
        if not bool((self.noise.isfinite() & (self.noise >= 0)).all()):
            raise SfumatoError("The noise of a measurement is a standard deviation, finite and at least 0.")

    def _checked(self, y: Tensor) -> Tensor:
        expected = tuple(self.measure(torch.zeros(1, *self.shape)).shape[1:])
        if tuple(y.shape) != expected:
            raise SfumatoError(f"The measurement has shape {tuple(y.shape)}, and the operator gives {expected}.")
        if not bool(y.isfinite().all()):
            raise SfumatoError("The measurement has NaN or infinite values: leave them out with operators.Mask.of(y).")
        return y

    @property
    def size(self) -> int:
        """How many numbers are measured."""
        return self.y.numel()

    def once(self, name: str, make: Callable[[Measurement], Any]) -> Any:
        """What `make` gives of this measurement, computed at the first call and kept."""
        if name not in self._made:
            self._made[name] = make(self)
        return self._made[name]

    def _data(self, x: Tensor) -> Tensor:
        return x if self._units is None else self._units.denormalise(x).to(x.dtype)

    def measure(self, x: Tensor) -> Tensor:
        """A(x), (B, *measured), of clean states (B, *shape)."""
        return self.operator(self._data(x)) / self.unit

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x), (B, *measured)."""
        return self.y.to(x) - self.measure(x)

    def push(self, x: Tensor, v: Tensor) -> Tensor:
        """A'(x) v, (B, *measured), of v (B, *shape)."""
        if self.linear:
            return self.measure(v) - self.measure(torch.zeros_like(v))
        pushed: Tensor = torch.func.jvp(self.measure, (x,), (v,))[1]
        return pushed

    def pull(self, x: Tensor, u: Tensor) -> Tensor:
        """A'(x)^T u, (B, *shape), of u (B, *measured)."""
        data, back = torch.func.vjp(self._data, x)[:2]
        pulled: Tensor = back(self.operator.adjoint(u / self.unit, data))[0]
        return pulled

    def variance(self, like: Tensor) -> Tensor:
        """s^2, which broadcasts to (B, *measured)."""
        return self.noise.to(like).square()

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | x), in nats of the units of y, float64 (B,)."""
        spread = self.noise.expand(self.y.shape).to(x.device)
        each = 0.5 * (self.residual(x).double() / spread).square() + (spread * self.unit).log()
        return -(each + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def project(self, x: Tensor, residual: Tensor, rounds: int = 50) -> Tensor:
        """A^+ r, (B, *shape): the smallest change of x that changes A x by the residual (B, *measured)."""
        return self.pull(x, conjugate_gradient(lambda u: self.push(x, self.pull(x, u)), residual, rounds))


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, rounds: int, tol: float = 1e-6) -> Tensor:
    """u with K u = b for a positive matrix K of each row, by at most so many products K u. b: (B, *measured).

    A row stops by itself where |b - K u| <= tol |b|, so that it does not depend on the others.
    Source: Hestenes and Stiefel 1952.
    """
    u, r = torch.zeros_like(b), b
    p, rho = r, _dot(r, r)
    enough = tol**2 * rho
    for _ in range(rounds):
        going = rho > enough
        if not bool(going.any()):
            break
        kp = product(p)
        curvature = _dot(p, kp)
        going &= curvature > 0  # rounding, where K is nearly singular
        step = torch.where(going, rho / torch.where(going, curvature, 1.0), 0.0)
        u, r = u + broadcast(step, u) * p, r - broadcast(step, u) * kp
        new = torch.where(going, _dot(r, r), 0.0)
        p = r + broadcast(new / rho.clamp_min(1e-300), u) * p
        rho = new
    return u


def minimal_residual(product: Callable[[Tensor], Tensor], b: Tensor, rounds: int, tol: float = 1e-6) -> Tensor:
    """u with K u = b for a matrix K of each row that need not be symmetric, by at most so many products K u.

    |b - K u| never grows, where conjugate gradients, which take K for symmetric, amplify what is not in each round.
    Rows stop by themselves, as above. Source: Eisenstat, Elman and Schultz 1983, generalised conjugate residuals.
    """
    u, r, enough = torch.zeros_like(b), b, tol**2 * _dot(b, b)
    before: list[Tensor] = []  # directions p and K p of each round, |K p| = 1
    for _ in range(rounds):
        going = _dot(r, r) > enough
        if not bool(going.any()):
            break
        both = torch.stack((r, product(r)))  # p, K p
        if before:
            known = torch.stack(before)
            share = torch.einsum("kbi,bi->kb", known[:, 1].flatten(2), both[1].flatten(1))
            both = both - torch.einsum("kb,ksb...->sb...", share, known)
        square = _dot(both[1], both[1])
        both = both / broadcast(torch.where(square > 0, square, 1.0).sqrt(), b)
        before.append(both)
        step = broadcast(torch.where(going, _dot(r, both[1]), 0.0), b)
        u, r = u + step * both[0], r - step * both[1]
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


@dataclasses.dataclass(frozen=True)
class Local:
    """What a model believes about z (B, *shape) at one time, and the measurement's linearisation there.

    x: E[x|z]. back: v -> (dE[x|z]/dz)^T v. scale: sigma^2 / alpha, with which the covariance Cov(x|z) = scale
    dE[x|z]/dz (Efron 2011).
    """

    x: Tensor
    back: Callable[[Tensor], Tensor]
    scale: Tensor
    spread: Tensor
    measurement: Measurement

    def push(self, v: Tensor) -> Tensor:
        return self.measurement.push(self.x, v)

    def pull(self, u: Tensor) -> Tensor:
        return self.measurement.pull(self.x, u)

    def move(self, u: Tensor) -> Tensor:
        """Cov(x|z) A^T u, by one product with the Jacobian of the model."""
        return broadcast(self.scale, self.x) * self.back(self.pull(u))

    def jacobian_covariance(self, u: Tensor) -> Tensor:
        """(A Cov(x|z) A^T + s^2) u."""
        return self.push(self.move(u)) + self.measurement.variance(u) * u

    def isotropic_covariance(self, u: Tensor) -> Tensor:
        """(r^2 A A^T + s^2) u, with the variance r^2 that a standard normal x has given z."""
        return broadcast(self.spread, u) * self.push(self.pull(u)) + self.measurement.variance(u) * u

    @property
    def residual(self) -> Tensor:
        """y - A E[x|z]."""
        return self.measurement.residual(self.x)


def local(model: Any, measurement: Measurement, z: Tensor, t: Time, **cond: Any) -> Local:
    """What the model believes at (z, t); at alpha = 0, where its Jacobian is, from a little nearer to the data."""
    process = model.process
    at = as_time(t).clamp_max(float(process.schedule.time(-NODE_LIMIT)))
    heard = float(at) if at.ndim == 0 else at
    x, back = torch.func.vjp(lambda z: model(z, heard, **cond).x, z)[:2]
    alpha, sigma = process.schedule(at)
    return Local(x, lambda v: back(v)[0], sigma**2 / alpha, spread(process, at), measurement)


def spread(process: Any, t: Time) -> Tensor:
    """r^2 = sigma^2 v / (alpha^2 v + sigma^2): the variance of x given z where x is normal of variance v."""
    alpha, sigma = process.schedule(t)
    v = process.sigma_data**2
    return sigma**2 * v / (alpha**2 * v + sigma**2)
