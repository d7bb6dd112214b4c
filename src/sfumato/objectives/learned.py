"""VDM's learned noise schedule: a monotone network draws the levels, and is trained for the least variance of the loss.

    g(u) = (G(u) - G(0)) / (G(1) - G(0)),   G(u) = h + sum_j c_j sigmoid(s_j h + d_j),   h = a u,   a, c_j, s_j > 0
    logsnr(u) = hi - (hi - lo) g(u),   p(logsnr) = 1 / ((hi - lo) g'(u))

The ends stay, so that the expected loss int w E|eps - eps_hat|^2 dlogsnr knows nothing of the network, and its variance
is that of the square. The gradient of the square needs the losses alone, not their derivative through the denoiser:

    d/deta E_p[(l / p)^2] = d/deta int E[l^2 | logsnr] / p dlogsnr = -E_p[(l / p)^2 d log p(logsnr) / deta]

The ends may be learned too, for the variational bound of real-valued data, whose rate at an end stands at the end:

    d/dhi = 1/2 E|eps - eps_hat|^2 (hi) - d/2,   d/dlo = 1/2 exp(lo) E|x|^2 - 1/2 E|eps - eps_hat|^2 (lo)

(the bound is L_T + 1/2 int_lo^hi E|eps - eps_hat|^2 dlogsnr + L_0, L_0 by the decoder N(x; z/alpha, sigma^2/alpha^2)).
Source: Kingma et al. 2021 (2107.00630), App. H and I.2, where the same gradients are taken along the path logsnr(u).
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

_NODES = 256  # between which an inverse is sought
_ROUNDING = 1e-6  # of logsnr, by which a level may leave the ends
_SHARP = 20.0  # of the sigmoids at first, which stand evenly over (0, 1)


def _inverse_softplus(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).expm1().log())


class Monotone(nn.Module):
    """g: [0, 1] -> [0, 1], g(0) = 0, g(1) = 1, rising for any parameters, in float64; near the identity at first.

    width: the number of sigmoids. Source: 2107.00630, App. H (weights kept positive, there by their absolute value).
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
            for _ in range(60):  # Newton between the ends of a bisection; the last step is below
                value, rate = self(u)
                if bool(((value - g).abs() < 1e-12).all()):
                    break
                lo, hi = torch.where(value < g, u, lo), torch.where(value < g, hi, u)
                step = u + (g - value) / rate
                u = torch.where((step > lo) & (step < hi), step, (lo + hi) / 2)
            rate = self(u)[1]
        # one step of Newton carries the derivatives of the implicit function: du = (dg - dg(u)) / g'(u)
        return (u + (g - self(u)[0]) / rate).clamp(0.0, 1.0)


class Learned(TimeDensity):
    """A density whose quantile is hi - (hi - lo) g(u), trained while a denoiser is.

    width: of the network g. lr: of Adam, which takes one step for every batch observed. ends: (lowest, highest) logsnr
    to begin with, where `learn_ends` is to move them; else they are those of the schedule, cut to +-15. State: the
    parameters and Adam's moments. `frozen` gives what was learned as a schedule for a file. Give it a weight: the plain
    error of a target is not divided by p, and would change with it.
    """

    def __init__(self, width: int = 64, lr: float = 0.03, ends: tuple[float, float] | None = None) -> None:
        if not lr > 0:
            raise SfumatoError(f"The learning rate of a learned density must be above 0, not {lr:g}.")
        if ends is not None and not -DRAWN_LIMIT <= ends[0] < ends[1] <= DRAWN_LIMIT:
            raise SfumatoError(
                f"Learned ends begin with two rising logsnr values within +-{DRAWN_LIMIT:g}, not {ends}."
            )
        self.net, self.ends = Monotone(width), None
        if ends is not None:  # the lowest, and the logarithm of the length, so that they cannot cross
            first = torch.tensor([ends[0], math.log(ends[1] - ends[0])], dtype=torch.float64)
            self.ends = nn.Parameter(first)
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, betas=(0.9, 0.99))
        if self.ends is not None:
            self._optimizer.add_param_group({"params": [self.ends]})
        self._drawn: tuple[float, float] | None = None

    def span(self, schedule: Schedule) -> tuple[float, float]:
        """(lowest, highest) logsnr that is drawn."""
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

    # -- what is learned -----------------------------------------------------------------------------------------

    def surrogate(self, logsnr: Tensor, losses: Tensor) -> Tensor:
        """-mean (l / p)^2 log p: its gradient is that of the mean square of the loss, for levels drawn under p now."""
        if self._drawn is None:
            raise SfumatoError("A learned density must draw the noise levels itself before it learns from them.")
        lam, loss = (v.detach().to("cpu", torch.float64) for v in (logsnr, losses))
        return -(loss.square() * self._log_density(lam, self._drawn)).mean()

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """One step of Adam down the mean square of the losses l / p (B,), whose levels (B,) were drawn just now."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            self.surrogate(logsnr, losses).backward()
        self._optimizer.step()

    def learn_ends(self, denoiser: Denoiser, x: Tensor, seed: int, index: Tensor, **cond: Any) -> None:
        """One step of Adam down the bound of samples x (B, ...), by the ends alone: two calls of the denoiser."""
        if self.ends is None:
            raise SfumatoError("This density keeps the ends of the schedule: build it with ends=(lowest, highest).")
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
        found = {f"net.{name}": parameter for name, parameter in self.net.named_parameters()}
        return found if self.ends is None else {**found, "ends": self.ends}

    def parameters(self) -> list[nn.Parameter]:
        return list(self._named().values())

    def tensors(self) -> dict[str, Tensor]:
        found = {name: parameter.detach() for name, parameter in self._named().items()}
        for name, parameter in self._named().items():
            found |= {f"adam.{name}.{key}": value for key, value in self._optimizer.state[parameter].items()}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named().items():
                if tensors[name].shape != parameter.shape:
                    raise SfumatoError("The learned density of the checkpoint has another width than this one.")
                parameter.copy_(tensors[name])
                start = f"adam.{name}."
                moments = {k.removeprefix(start): v.clone() for k, v in tensors.items() if k.startswith(start)}
                self._optimizer.state[parameter] = moments

    @torch.no_grad()
    def frozen(self, schedule: Schedule, nodes: int = 256) -> Tabulated:
        """The learned density as a schedule: uniform t draws logsnr from it (variance-preserving, a table)."""
        return Tabulated(tuple(self.logsnr(torch.linspace(0, 1, nodes + 1, dtype=torch.float64), schedule).tolist()))


@torch.no_grad()
def end_rates(
    denoiser: Denoiser, x: Tensor, ends: tuple[float, float], seed: int, index: Tensor, **cond: Any
) -> tuple[float, float]:
    """(d bound / d lowest, d bound / d highest logsnr) in nats a sample, estimated from x (B, ...) (see the head).

    A model that says E[eps|z] wants both ends further out: the first is not negative, the second not positive.
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
    """VDM's monotone network, trained for the least variance of the loss (2107.00630, App. I.2)."""
    return Learned(width, lr)
