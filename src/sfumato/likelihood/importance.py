"""The importance-weighted bound, over K trajectories of the discrete-time chain.

    log p(x) >= E log 1/K sum_k w_k,   w = p(z_1) prod p(z_s | z_t) p(x | z_{t_1}) / q(z | x),   z ~ q(. | x)

increases with K to log p(x) of the chain, which tends to the model's reverse SDE for many steps; K = 1 is the
discrete-time bound. Trajectories are drawn from noise to data, eps_s = r eps_t + sqrt(1 - r^2) n with
r = exp((logsnr_t - logsnr_s) / 2). With d = (snr_s - snr_t)^(1/2) (x - E[x|z_t]) and e^r' = Sigma / beta_tilde,

    log p(z_s | z_t) - log q(z_s | z_t, x) = -1/2 sum_d [r' + e^-r' (n + d)^2 - n^2]

Source: Burda et al. 2015 (1509.00519), Eq. 8, with the chain of 2006.11239.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate
from sfumato.conditions import Conditions
from sfumato.errors import whole
from sfumato.likelihood.bound import Span, check
from sfumato.likelihood.measured import Measured, pooled
from sfumato.model import Model, compute_dtype
from sfumato.objectives.chain import data_nats, spread_out, step, widening
from sfumato.objectives.decoder import Cells
from sfumato.probability_flow import data_scale

_FIRST = 1 << 21  # the first stream of the trajectories, under the role BOUND


def importance(
    model: Model,
    x: Tensor,
    index: Tensor,
    cond: Conditions,
    steps: int = 64,
    probes: int = 8,
    seed: int = 0,
    sigma_min: float | None = None,
    cells: Cells | None = None,
    particles: int = 16,
) -> Measured:
    """The bound for normalised x (B, *shape), float64: `probes` replicates of `particles` trajectories each.

    stderr refers to the K-trajectory bound, which itself lies below log p(x) by about half the variance of the weights
    over K.
    """
    check(steps, probes)
    particles = whole("particles, the trajectories of a replicate,", particles)
    span = Span.of(model.process.schedule, data_scale(model), sigma_min)
    time = model.process.schedule.time(span.quantile(torch.linspace(1, 0, steps + 1, dtype=torch.float64)))
    time[-1] = 1.0
    copies = probes * particles
    each = []
    for part in torch.arange(len(x)).split(max(1, (1 << 18) // (copies * x[0].numel()))):
        chosen = cond.rows(part).copies(copies)
        walk = _Trajectories(model, x[part].repeat_interleave(copies, 0), seed, index[part], copies, chosen)
        each.append(walk.log_weights(time, cells).reshape(len(part), probes, particles))
    value, stderr, third = pooled(torch.logsumexp(torch.cat(each), 2) - math.log(particles))
    words = f"importance, {particles} trajectories, {probes} replicates"
    return Measured(
        value.cpu(), stderr.cpu(), third.cpu(), None, None, None, words, x[0].numel(), probes, steps, bound=True
    )


class _Trajectories:
    """Trajectories from noise to data for copies of a batch, x (B copies, *shape)."""

    def __init__(self, model: Model, x: Tensor, seed: int, index: Tensor, copies: int, cond: Conditions) -> None:
        self.model, self.x, self.seed, self.index, self.copies, self.cond = model, x, seed, index, copies, cond
        self.dtype = compute_dtype(model)
        self.variance = "learned" if getattr(model, "variance", "fixed") == "learned" else "posterior"

    def _normal(self, k: int) -> Tensor:
        shape = (self.copies, *self.x.shape[1:])
        drawn = noise.normal(self.seed, self.index, shape, noise.BOUND, _FIRST + k, self.x.device, torch.float64)
        return drawn.flatten(0, 1)

    @torch.no_grad()
    def log_weights(self, time: Tensor, cells: Cells | None) -> Tensor:
        """log w, (B copies,), on the increasing times."""
        process, x, eps = self.model.process, self.x, self._normal(0)
        alpha, sigma = (float(v) for v in process.schedule(1.0))
        # log N(z; 0, sigma^2) - log N(z; alpha x, sigma^2)
        z = alpha * x + sigma * eps
        total = 0.5 * (eps.square() - (z / sigma).square()).flatten(1).sum(1)
        for k in range(len(time) - 1, 0, -1):
            belief = self._belief(eps, float(time[k]))
            eps, gain = self._step(belief, eps, time[k], time[k - 1], self._normal(k))
            total = total + gain
        belief = self._belief(eps, float(time[0]))
        return total - data_nats(process, belief, x, eps, time[1], self.variance, cells)

    def _belief(self, eps: Tensor, t: float) -> Estimate:
        z = self.model.process.corrupt(self.x, t, eps).to(self.dtype)
        return self.model(z, t, **self.cond)

    def _step(self, belief: Estimate, eps: Tensor, t: Tensor, s: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """(eps_s, log p(z_s|z_t) - log q(z_s|z_t, x))."""
        schedule, x = self.model.process.schedule, self.x
        lam_t, lam_s = schedule.logsnr(t), schedule.logsnr(s)
        if float(lam_t) > 0:  # use the more precise form
            off = torch.expm1(lam_s - lam_t).sqrt() * (belief.eps.to(torch.float64) - eps)
        else:
            off = (lam_s.exp() - lam_t.exp()).sqrt() * (x - belief.x.to(torch.float64))
        wider = spread_out(widening(belief, step(self.model.process, t, s), self.variance), x)
        gain = -0.5 * (wider + torch.exp(-wider) * (n + off).square() - n.square()).flatten(1).sum(1)
        kept = torch.exp((lam_t - lam_s) / 2)
        return kept * eps + torch.sqrt(1 - kept**2) * n, gain
