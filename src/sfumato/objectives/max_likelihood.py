"""Maximum likelihood through the solver of the ODE: what a continuous normalising flow is trained by.

    log p(x) = log N(z_1; 0, sigma_1^2) + D log(alpha_0 S_1 / S_0) + int tr(dy/dw) dtau,   dw/dtau = y(w, tau)

with w = z / S, S = s alpha + sigma, tau = sigma / S of the probability-flow ODE (`probability_flow`), z_0 = alpha x.
The field y = E[eps|z] - E[x|z] / s may be any: the likelihood that is learned is that of the ODE, whose samples are
those of `heun`, `rk4` or `adaptive`, and of no ancestral solver. Flow matching reaches the same without a solve.
With few steps a network can gain by their error: `sf.log_prob` with more of them tells.
Sources: Chen et al. 2018 (1806.07366), Eq. 8 and Algorithm 1; Grathwohl et al. 2018 (1810.01367), Eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.errors import whole
from sfumato.model import compute_dtype
from sfumato.objectives.loss import Loss
from sfumato.probability_flow import Track, data_scale
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.solvers.adaptive import torchdiffeq

_EXACT = 4  # numbers of a sample up to which the trace is exact; beyond, one probe a sample


@register("loss", "maximum-likelihood")
@final
class MaximumLikelihood(Loss):
    """-log p(x) / D, in nats per number of normalised data, through `steps` Runge-Kutta steps of order 4.

    adjoint: gradients by the adjoint ODE, whose memory does not grow with the steps, and which are those of the steps
    up to their error; else by differentiating the steps themselves. The trace is exact for up to four numbers, beyond
    by one Rademacher probe a sample. Needs torchdiffeq; SfumatoError for other models than those of real numbers.
    """

    watched = "the negative log-likelihood"

    def __init__(self, seed: int = 0, steps: int = 16, adjoint: bool = False) -> None:
        super().__init__()
        self.seed, self.steps, self.adjoint = seed, 2 * math.ceil(whole("steps", steps) / 2), bool(adjoint)

    def suits(self, model: Any) -> None:
        require_numbers(model, "The likelihood of a flow", "take loss='denoising'")

    def losses(self, model: Any, batch: Any) -> Tensor:
        return -self.log_prob(model, batch.x, batch.index, batch.cond) / batch.x[0].numel()

    def log_prob(self, model: Any, x: Tensor, index: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """log p(x) of normalised x (B, *shape) with sample numbers `index`, in nats, (B,), with gradients."""
        track = Track.of(model.process.schedule, self.steps, data_scale(model))
        dim, dtype = x[0].numel(), compute_dtype(model)
        signs = None
        if dim > _EXACT:
            signs = noise.rademacher(self.seed, index, x.shape[1:], noise.PROBE, 0, x.device, dtype)
        taus = torch.tensor([s / n for s, n in zip(track.sigma[::2], track.norm[::2], strict=True)], device=x.device)
        start = (track.alpha[0] / track.norm[0] * x).to(dtype), torch.zeros(len(x), dtype=dtype, device=x.device)
        field = Augmented(model, track.scale, cond, signs)
        solve = torchdiffeq().odeint_adjoint if self.adjoint else torchdiffeq().odeint
        w, change = (each[-1] for each in solve(field, start, taus.to(dtype), method="rk4"))
        sigma, norm = track.sigma[-1], track.norm[-1]
        prior = (norm / sigma * w).flatten(1).square().sum(1) + dim * math.log(2 * math.pi * sigma**2)
        return change - 0.5 * prior + dim * math.log(track.alpha[0] * norm / track.norm[0])


class Augmented(nn.Module):
    """d(w, log p)/dtau = (y, tr dy/dw) of a model's flow, for states (B, *shape) and (B,)."""

    def __init__(self, model: Any, scale: float, cond: Mapping[str, Any], signs: Tensor | None) -> None:
        super().__init__()
        self.model, self.scale, self.cond, self.signs = model, scale, cond, signs

    def forward(self, tau: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            w = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            y = self.slope(float(tau.detach()), w)
            trace = self.trace(w, y, keep)
        return (y, trace) if keep else (y.detach(), trace.detach())

    def slope(self, tau: float, w: Tensor) -> Tensor:
        """dw/dtau = E[eps|z] - E[x|z] / s."""
        schedule = self.model.process.schedule
        tau = min(tau, 1.0)
        level = 2 * (math.log1p(-tau) - math.log(tau * self.scale)) if tau < 1 else -math.inf
        t = min(max(float(schedule.time(torch.tensor(level, dtype=torch.float64))), 0.0), 1.0)
        alpha, sigma = (float(each) for each in schedule(t))
        belief = self.model((self.scale * alpha + sigma) * w, t, **self.cond)
        found: Tensor = belief.eps - belief.x / self.scale
        return found

    def trace(self, w: Tensor, y: Tensor, keep: bool) -> Tensor:
        """tr dy/dw, (B,): the sum over unit vectors, or v^T (dy/dw) v of a sample's probe v."""
        if self.signs is not None:
            return self._product(w, y, self.signs, keep)
        units = torch.eye(w[0].numel(), dtype=w.dtype, device=w.device).reshape(-1, 1, *w.shape[1:])
        return sum(self._product(w, y, v.expand_as(w), keep) for v in units)  # type: ignore[return-value]

    def _product(self, w: Tensor, y: Tensor, v: Tensor, keep: bool) -> Tensor:
        (pulled,) = torch.autograd.grad(y, w, v, create_graph=keep, retain_graph=True)
        return (pulled * v).flatten(1).sum(1)
