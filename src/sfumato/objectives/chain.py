"""One step of the discrete-time model, z_t -> z_s: the posterior q, the model p, and the divergence between them.

    q(z_s | z_t, x) = N(kept z_t + gain x, beta_tilde)      p(z_s | z_t) = N(kept z_t + gain E[x|z_t], Sigma)
    KL(q || p) = 1/2 sum_d [(1 + (snr_s - snr_t) (x - E[x|z])^2) exp(-r) - 1 + r],   r = log(Sigma / beta_tilde)

    Sigma = beta_tilde   "posterior", fixed small     beta_tilde = c^2 sigma_s^2 / sigma_t^2
          = beta         "beta", fixed large          beta = c^2 S_s^2 / S_t^2,   S^2 = alpha^2 + sigma^2
          = exp(v log beta + (1 - v) log beta_tilde)   "learned"

with c^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 = -sigma_t^2 expm1(logsnr_t - logsnr_s). At the last step, to the
data, beta_tilde is 0: Sigma is then beta = sigma_t^2 / S_t^2, the posterior variance for N(0, I) data, and the lower
limit of a learned variance is the beta_tilde of the previous step, as in the paper's code.
Sources: Ho et al. 2020 (2006.11239), Eq. 5-8; Nichol and Dhariwal 2021 (2102.09672), Eq. 15.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.belief import Estimate, broadcast
from sfumato.errors import SfumatoError, suggest
from sfumato.objectives.decoder import Cells, cell_nats, density_nats
from sfumato.process import Gaussian

VARIANCES = ("posterior", "beta", "learned")


class Transition(NamedTuple):
    """One step: the coefficients of z_t and x, log beta_tilde and log beta; float64, numbers or (B,)."""

    kept: Tensor
    gain: Tensor
    low: Tensor
    high: Tensor


def step(process: Gaussian, t: Tensor, s: Tensor) -> Transition:
    """The transition from t to s < t, where sigma_s > 0."""
    schedule = process.schedule
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    new = -torch.expm1(schedule.logsnr(t) - schedule.logsnr(s))  # c^2 / sigma_t^2, without cancellation
    norm = (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2)
    low = 2 * sigma_s.log() + new.log()
    return Transition(alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, alpha_s * new, low, (sigma_t**2 * new * norm).log())


def last_step(process: Gaussian, t: Tensor, before: Tensor | None) -> Transition:
    """The transition from t to the data; `before` is the next higher time, or None if t is the first."""
    alpha, sigma = process.schedule(t)
    high = 2 * sigma.log() - (alpha**2 + sigma**2).log()
    low = high if before is None else torch.minimum(step(process, before, t).low, high)
    return Transition(torch.zeros_like(alpha), torch.ones_like(alpha), low, high)


def check_variance(variance: str) -> None:
    if variance not in VARIANCES:
        raise SfumatoError(f"Unknown step variance {variance!r}: {suggest(variance, VARIANCES)}")


def widening(belief: Estimate, transition: Transition, variance: str) -> Tensor:
    """r = log(Sigma / beta_tilde): a number, (B,), or like z if learned."""
    if variance == "posterior":
        return torch.zeros_like(transition.low)
    if variance == "beta":
        return transition.high - transition.low
    if belief.variance_share is None:
        raise SfumatoError("This model has no learned variance: use variance='posterior' or 'beta'.")
    return belief.variance_share * broadcast(transition.high - transition.low, belief.z)


def spread_out(value: Tensor, like: Tensor) -> Tensor:
    """A number, (B,) or a field, broadcast to the shape and dtype of `like`."""
    return value.to(like) if value.ndim == like.ndim else broadcast(value, like)


def signal_error(belief: Estimate, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """((x - E[x|z])^2, (eps - E[eps|z])^2), like x: each is precise where the other suffers from cancellation."""
    return (x - belief.x.to(x.dtype)).square(), (eps - belief.eps.to(x.dtype)).square()


def step_nats(process: Gaussian, belief: Estimate, x: Tensor, eps: Tensor, s: Tensor, variance: str) -> Tensor:
    """KL(q(z_s | z_t, x) || p(z_s | z_t)) in nats, (B,), at belief.z = alpha x + sigma eps."""
    schedule, t = process.schedule, belief.t
    transition, (lam_t, lam_s) = step(process, t, s), (schedule.logsnr(t), schedule.logsnr(s))
    near_data = lam_t > 0
    by_x = torch.where(near_data, 0.0, lam_s.exp() - lam_t.exp())
    by_eps = torch.where(near_data, torch.expm1(lam_s - torch.where(near_data, lam_t, 0.0)), 0.0)
    error_x, error_eps = signal_error(belief, x, eps)
    ratio = broadcast(by_x, x) * error_x + broadcast(by_eps, x) * error_eps  # gain^2 (x - x_hat)^2 / beta_tilde
    r = spread_out(widening(belief, transition, variance), x)
    return 0.5 * (ratio * torch.exp(-r) + torch.expm1(-r) + r).flatten(1).sum(1)


def data_nats(
    process: Gaussian,
    belief: Estimate,
    x: Tensor,
    eps: Tensor,
    before: Tensor | None,
    variance: str,
    cells: Cells | None,
) -> Tensor:
    """-log p(x | z_t) in nats, (B,): the probability of integers if `cells` are passed, else a density in normalised
    units."""
    transition = last_step(process, belief.t, before)
    # beta_tilde is 0 here, so every fixed variance is beta
    wide = widening(belief, transition, "learned" if variance == "learned" else "beta")
    log_std = ((spread_out(transition.low, x) + spread_out(wide, x)) / 2).to(x).expand_as(x)
    if cells is not None:
        return cell_nats(x, belief.x.to(x.dtype), log_std, cells)
    alpha, sigma = belief.alpha, belief.sigma
    near_data = alpha > sigma  # E[x|z] - x = sigma / alpha (eps - E[eps|z]) is precise there
    scale = sigma / torch.where(near_data, alpha, torch.inf)
    by_eps = broadcast(scale, x) * (belief.eps.to(x.dtype) - eps)
    error = by_eps + broadcast((~near_data).double(), x) * (x - belief.x.to(x.dtype))
    return density_nats(error, log_std)
