"""VDM's learned noise schedule: a monotone network draws the levels and is trained to minimise the loss variance.

    g(u) = (G(u) - G(0)) / (G(1) - G(0)),   G(u) = h + sum_j c_j sigmoid(s_j h + d_j),   h = a u,   a, c_j, s_j > 0
    logsnr(u) = hi - (hi - lo) g(u),   p(logsnr) = 1 / ((hi - lo) g'(u))

The ends are fixed, so the expected loss int w E|eps - eps_hat|^2 dlogsnr does not depend on the network, and minimising
its variance means minimising its mean square, with a gradient that needs only the losses, not their derivatives:

    d/deta E_p[(l / p)^2] = d/deta int E[l^2 | logsnr] / p dlogsnr = -E_p[(l / p)^2 d log p(logsnr) / deta]

The ends may be learned too, for the variational bound of real-valued data, by its derivatives at the ends:

    d/dhi = 1/2 E|eps - eps_hat|^2 (hi) - d/2,   d/dlo = 1/2 exp(lo) E|x|^2 - 1/2 E|eps - eps_hat|^2 (lo)

(the bound is L_T + 1/2 int_lo^hi E|eps - eps_hat|^2 dlogsnr + L_0, L_0 by the decoder N(x; z/alpha, sigma^2/alpha^2)).
Source: Kingma et al. 2021 (2107.00630), App. H and I.2, who differentiate along the path logsnr(u) instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sfumato import noise
from sfumato.conditions import unfolded
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.objectives.density import TimeDensity, limits
from sfumato.registry import register
from sfumato.schedule import DRAWN_LIMIT, Schedule
from sfumato.schedules import Tabulated

_NODES = 256  # intervals that bracket an inverse
_ROUNDING = 1e-6  # logsnr by which a level may exceed the ends
_SHARP = 20.0  # initial slope of the sigmoids, which are spread evenly over (0, 1)


def _inverse_softplus(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).expm1().log())


class Monotone(nn.Module):
    """g: [0, 1] -> [0, 1], g(0) = 0, g(1) = 1, increasing for any parameters, in float64; initially near the identity.

    width: the number of sigmoids. Source: 2107.00630, App. H (there positive weights are absolute values).
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise SfumatoError(f"A monotone network needs a width of at least 1, not {width}.")

        def filled(value: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, _inverse_softplus(value), dtype=torch.float64))

        self.slope, self.heights, self.sharpness = filled(1.0), filled(0.2 / width, width), filled(_SHARP, width)
        places = (torch.arange(width, dtype=torch.float64) + 0.5) / width
        self.shifts = nn.Parameter(-_SHARP * places)

    def _raw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """G(u) and G'(u)."""
        a, c, s = softplus(self.slope), softplus(self.heights), softplus(self.sharpness)
        bend = torch.sigmoid(a * u[..., None] * s + self.shifts)
        return a * u + (c * bend).sum(-1), a * (1 + (c * s * bend * (1 - bend)).sum(-1))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(g(u), g'(u)) at u (...), float64."""
        value, rate = self._raw(u)
        first, last = self._raw(torch.tensor([0.0, 1.0], dtype=torch.float64, device=u.device))[0]
        return (value - first) / (last - first), rate / (last - first)

    def inverse(self, g: Tensor) -> Tensor:
        """u with g(u) = g, for g in [0, 1]; differentiable in g and in the parameters."""
        with torch.no_grad():
            nodes = torch.linspace(0, 1, _NODES + 1, dtype=torch.float64, device=g.device)
            i = torch.searchsorted(self(nodes)[0], g.contiguous()).clamp(1, _NODES)
            lo, hi = nodes[i - 1], nodes[i]
            u = (lo + hi) / 2
            for _ in range(60):  # Newton's method safeguarded by bisection; the last step is below
                value, rate = self(u)
                if bool(((value - g).abs() < 1e-12).all()):
                    break
                lo, hi = torch.where(value < g, u, lo), torch.where(value < g, hi, u)
                step = u + (g - value) / rate
                u = torch.where((step > lo) & (step < hi), step, (lo + hi) / 2)
            rate = self(u)[1]
        # one Newton step outside no_grad gives the derivatives of the implicit function: du = (dg - dg(u)) / g'(u)
        return (u + (g - self(u)[0]) / rate).clamp(0.0, 1.0)


class Learned(TimeDensity):
    """A density with quantile function hi - (hi - lo) g(u), trained together with a denoiser.

    width: of the network g. lr: of Adam, which takes one step per observed batch. ends: the initial (lowest, highest)
    logsnr if `learn_ends` is used; by default those of the schedule, within +-15. State: the parameters and Adam's
    moments. `frozen` returns the learned density as a schedule that can be saved. It needs a loss with a weight: the
    plain error of a target is not divided by p, and would change with it.
    """

    def __init__(self, width: int = 64, lr: float = 0.03, ends: tuple[float, float] | None = None) -> None:
        if not lr > 0:
            raise SfumatoError(f"The learning rate of a learned density must be above 0, not {lr:g}.")
        if ends is not None and not -DRAWN_LIMIT <= ends[0] < ends[1] <= DRAWN_LIMIT:
            raise SfumatoError(
                f"Learned ends must start at two increasing logsnr values within +-{DRAWN_LIMIT:g}, not {ends}."
            )
        self.net, self.ends = Monotone(width), None
        if ends is not None:  # the lowest end and the log of the length, so that the ends cannot cross
            first = torch.tensor([ends[0], math.log(ends[1] - ends[0])], dtype=torch.float64)
            self.ends = nn.Parameter(first)
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, betas=(0.9, 0.99))
        if self.ends is not None:
            self._optimizer.add_param_group({"params": [self.ends]})
        self._drawn: tuple[float, float] | None = None

    def span(self, schedule: Schedule) -> tuple[float, float]:
        """The (lowest, highest) logsnr that is drawn."""
        lo, hi = limits(schedule)
        if self.ends is None:
            return lo, hi
        first, length = self.ends.tolist()
        return max(lo, first), min(hi, first + math.exp(length))

    @torch.no_grad()
    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = self._drawn = self.span(schedule)
        return hi - (hi - lo) * self.net(u.cpu())[0].to(u.device)

    @torch.no_grad()
    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        (lo, hi), lam = self.span(schedule), logsnr.cpu()
        inside = (lam > lo - _ROUNDING) & (lam < hi + _ROUNDING)
        return torch.where(inside, self._log_density(lam, (lo, hi)).exp(), 0.0).to(logsnr.device)

    def _log_density(self, logsnr: Tensor, span: tuple[float, float]) -> Tensor:
        lo, hi = span
        u = self.net.inverse(((hi - logsnr) / (hi - lo)).clamp(0.0, 1.0))
        return -((hi - lo) * self.net(u)[1]).log()

    # -- learning ------------------------------------------------------------------------------------------------

    def surrogate(self, logsnr: Tensor, losses: Tensor) -> Tensor:
        """-mean (l / p)^2 log p, with the gradient of the mean square loss, for levels drawn from the current p."""
        if self._drawn is None:
            raise SfumatoError("A learned density must draw the noise levels itself before it learns from them.")
        lam, loss = (v.detach().to("cpu", torch.float64) for v in (logsnr, losses))
        return -(loss.square() * self._log_density(lam, self._drawn)).mean()

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """One Adam step on the mean square of the losses l / p (B,) at levels (B,) drawn from the current p."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            self.surrogate(logsnr, losses).backward()
        self._optimizer.step()

    def learn_ends(self, denoiser: Denoiser, x: Tensor, seed: int, index: Tensor, **cond: Any) -> None:
        """One Adam step of the ends only, on the bound of samples x (B, ...): two calls of the denoiser."""
        if self.ends is None:
            raise SfumatoError("This density has the schedule's fixed ends: build it with ends=(lowest, highest).")
        lo, hi = self.span(denoiser.process.schedule)
        low, high = end_rates(denoiser, x, (lo, hi), seed, index, **cond)
        self._optimizer.zero_grad(set_to_none=True)
        # hi = lo + length moves with lo
        self.ends.grad = torch.tensor([low + high, high * (hi - lo)], dtype=torch.float64)
        self._optimizer.step()

    @property
    def moves(self) -> bool:
        return True

    def _named(self) -> dict[str, nn.Parameter]:
        named = {f"net.{name}": parameter for name, parameter in self.net.named_parameters()}
        return named if self.ends is None else {**named, "ends": self.ends}

    def parameters(self) -> list[nn.Parameter]:
        return list(self._named().values())

    def tensors(self) -> dict[str, Tensor]:
        tensors = {name: parameter.detach() for name, parameter in self._named().items()}
        for name, parameter in self._named().items():
            tensors |= {f"adam.{name}.{key}": value for key, value in self._optimizer.state[parameter].items()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named().items():
                if tensors[name].shape != parameter.shape:
                    raise SfumatoError("The learned density has another width than the one in the checkpoint.")
                parameter.copy_(tensors[name])
                start = f"adam.{name}."
                moments = {k.removeprefix(start): v.clone() for k, v in tensors.items() if k.startswith(start)}
                self._optimizer.state[parameter] = moments

    @torch.no_grad()
    def frozen(self, schedule: Schedule, nodes: int = 256) -> Tabulated:
        """The learned density as a tabulated, variance-preserving schedule: uniform t draws logsnr from it."""
        return Tabulated(tuple(self.logsnr(torch.linspace(0, 1, nodes + 1, dtype=torch.float64), schedule).tolist()))


@torch.no_grad()
def end_rates(
    denoiser: Denoiser, x: Tensor, ends: tuple[float, float], seed: int, index: Tensor, **cond: Any
) -> tuple[float, float]:
    """(d bound / d lowest, d bound / d highest logsnr) in nats per sample, estimated from x (B, ...).

    For an optimal model the first is non-negative and the second non-positive: both ends move outwards.
    """
    schedule, dim, errors = denoiser.process.schedule, math.prod(x.shape[1:]), []
    eps = noise.normal(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, device=x.device, dtype=x.dtype)
    for end in ends:
        t = schedule.time(end).expand(len(x))
        belief = denoiser(denoiser.process.corrupt(x, t, eps), t, **unfolded(cond))
        errors.append(float((belief.eps - eps).flatten(1).double().square().sum(1).mean()))
    size = float(x.flatten(1).double().square().sum(1).mean())
    return 0.5 * (math.exp(ends[0]) * size - errors[0]), 0.5 * (errors[1] - dim)


@register("density", "learned")
def learned(width: int = 64, lr: float = 0.03) -> Learned:
    """VDM's monotone network, trained to minimise the variance of the loss (2107.00630, App. I.2)."""
    return Learned(width, lr)
