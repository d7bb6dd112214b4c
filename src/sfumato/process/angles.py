"""Angles of noise: the coordinates in which the probability-flow ODE of a process is dw/dtheta = -F.

    numbers        w = z / S,   theta = arctan(sigma / (alpha sigma_data)),   S = sqrt(sigma^2 + alpha^2 sigma_data^2)
    coefficients   the same of each, w_f, theta_f and S_f (`Spectral`)
    interpolants   w = z,   theta = arctan sqrt(beta / alpha), in which alpha, beta and gamma have rates at both ends

F is the target of this name, and of an interpolant -dz/dtheta. A time is told by one number, its `angle`: theta, or of
coefficients that of their common clock. The `turn` is theta of each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato.belief import Between, broadcast
from sfumato.process.paired import Coefficients, Interpolant
from sfumato.process.spectral import Spectral
from sfumato.schedule import Time, as_time

_WIDTH = 1e-5  # of a difference in theta, in float64


def angle(process: Any, t: Time) -> Tensor:
    """The angle at times t, float64 like t: 0 for data, at most pi / 2 for noise."""
    if isinstance(process, Spectral):
        return _read(process.times, process.angles, as_time(t))
    alpha, sigma = process.schedule(t)
    if isinstance(process, Interpolant):
        return torch.atan2(sigma.sqrt(), alpha.sqrt())
    return torch.atan2(sigma, alpha * process.sigma_data)


def time(process: Any, theta: Tensor) -> Tensor:
    """The time t of an angle, limited to the schedule's range: the inverse of `angle`."""
    if isinstance(process, Spectral):
        return _read(process.angles, process.times, theta)
    tangent = torch.sin(theta) / torch.cos(theta).clamp_min(1e-300)
    if isinstance(process, Interpolant):
        logsnr = -4 * torch.log(tangent)
    else:
        logsnr = -2 * torch.log(tangent * process.sigma_data)
    return torch.where(theta <= 0, 0.0, process.schedule.time(logsnr))


def _read(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """y at these places, where x rises, by straight lines."""
    x, y = x.to(at.device), y.to(at.device)
    k = (torch.searchsorted(x, at.detach().contiguous(), right=True) - 1).clamp(0, len(x) - 2)
    share = ((at - x[k]) / (x[k + 1] - x[k])).clamp(0, 1)
    return y[k] + share * (y[k + 1] - y[k])


def turn(process: Any, t: Time) -> Tensor:
    """theta of each coefficient, (1, *shape) or (B, *shape), or that of all, float64 like t."""
    if not isinstance(process, Spectral):
        return angle(process, t)
    alpha, sigma = process.schedule(t)
    return torch.atan2(sigma, alpha * process.sigma_data)


def ended(process: Any, s: Tensor, theta: Tensor | None = None) -> Tensor:
    """The turn, or the angle theta, at which a path ends: 0 for s = 0, the clean signal, also where sigma(0) > 0."""
    theta = turn(process, s) if theta is None else theta
    return torch.where((s == 0).reshape((*s.shape, *[1] * (theta.ndim - s.ndim))), 0.0, theta)


def share(process: Any, t: Tensor, s: Tensor, part: tuple[Tensor, Tensor], even: Tensor | float) -> Tensor:
    """The share of the turn from t to s that lies between the times of a part of this path, as `turn` has it; `even` of
    coefficients that do not turn."""
    whole, some = (turn(process, a) - ended(process, b) for a, b in ((t, s), part))
    still = whole.abs() < 1e-9
    even = torch.as_tensor(even, dtype=whole.dtype, device=whole.device)
    even = even.reshape(*even.shape, *[1] * (whole.ndim - even.ndim)) if even.ndim else even
    return torch.where(still, even, some / torch.where(still, 1.0, whole))


def size(process: Any, t: Time) -> Tensor:
    """S, as `turn` has it; 1 of an interpolant."""
    alpha, sigma = process.schedule(t)
    if isinstance(process, Interpolant):
        return torch.ones_like(alpha)
    return torch.sqrt(sigma**2 + alpha**2 * process.sigma_data**2)


def unit(process: Any, z: Tensor, t: Time) -> Tensor:
    """w = z / S of states z (B, ...) at times t."""
    return z / broadcast(size(process, t), z)


def state(process: Any, w: Tensor, t: Time) -> Tensor:
    """z = S w, the inverse of `unit`."""
    return broadcast(size(process, t), w) * w


def moved(process: Any, z: Tensor, t: Tensor, s: Tensor, mean: Tensor) -> Tensor:
    """X = S_s [z / S_t + (theta_t - theta_s) F] for the mean F of the path from t to s."""
    return state(process, unit(process, z, t) + broadcast(turn(process, t) - turn(process, s), z) * mean, s)


def slope(belief: Any) -> Tensor:
    """F of a belief, like z."""
    if not isinstance(belief, Between):
        found: Tensor = belief.F
        return found
    return between(belief, belief.t)


def between(belief: Between, s: Time) -> Tensor:
    """The mean of F over the step of a belief about an interpolant to s: -sum (c_t - c_s) / (theta_t - theta_s) part
    over alpha x + beta x' + gamma zeta, like z."""
    rates = zip(_quotients(belief.process, belief.t, as_time(s)), (belief.x, belief.source, belief.zeta), strict=True)
    return -sum((broadcast(c, part) * part for c, part in rates), torch.zeros_like(belief.x))


def _quotients(process: Interpolant, t: Tensor, s: Tensor) -> Coefficients:
    """(c_t - c_s) / (theta_t - theta_s) of alpha, beta and gamma, and dc/dtheta, by a difference, where t = s."""
    theta = angle(process, t)
    still = theta == angle(process, s)
    near = [time(process, (theta.detach() + h).clamp(0, math.pi / 2)) for h in (_WIDTH, -_WIDTH)]
    t, s = (torch.where(still, there, here) for there, here in zip(near, (t, s), strict=True))
    distance = angle(process, t) - angle(process, s)
    return Coefficients(*((a - b) / distance for a, b in zip(process.path(t), process.path(s), strict=True)))
