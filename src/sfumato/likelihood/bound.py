"""The continuous-time variational bound, as a sum over noise levels that does not depend on the schedule in between.

    -log p(x) <= KL(q(z_1|x) || prior) + int L(x, z_t, t) dlevel + E[-log p(x|z_0)]

L is the loss rate in nats per unit of the level (`Process.loss` with weight 1): 1/2 |eps - E[eps|z]|^2 for real
numbers; for symbols the path KL of 2107.03006 and 2406.07524, an equality for an exact belief; for a product the sum
over its parts at one time. For real numbers the integral runs over logsnr between the schedule's ends only, so
schedules with equal ends have equal bounds; z_0 is x with the least noise, and p(x|z_0) the discretised or the normal
distribution around E[x|z_0] with variance sigma^2 / (alpha^2 + sigma^2 / s^2), s the standard deviation of the data.

Levels: each replicate has one in each of K strata of equal probability, all shifted by one uniform number. For real
numbers p(logsnr) ~ sigmoid(logsnr + 2 log s), for which the integrand of N(0, s^2) data is constant and logsnr may
start at -inf. For symbols p(level) ~ sech(level / 2): with a density that decays faster towards the data, the second
moment for independent masks is infinite; symbols that are vectors have the same about the level at which they are told
apart. Masked symbols alone have exact counts of masks instead of levels
(`objectives.counts`), which vary least. A product assigns its strata in turn to its kinds of parts, and divides by the
mixture. Source: Kingma et al. 2021 (2107.00630), Eq. 11-15, App. I.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.likelihood.control import LinearDenoiser, controlled
from sfumato.likelihood.measured import Measured, pooled
from sfumato.model import Model, compute_dtype
from sfumato.noise import Noise
from sfumato.noised import Noised
from sfumato.objectives.counts import counted, masked, masked_logits, masked_nats
from sfumato.objectives.decoder import Cells, cell_nats, density_nats
from sfumato.objectives.times import CosMap
from sfumato.probability_flow import data_scale
from sfumato.process import Additive, Embedded, Gaussian, Spectral
from sfumato.schedule import NODE_LIMIT, Schedule
from sfumato.state import State, first_leaf

_ROWS = 512  # states per model call, or one per sample if those are more
_SHIFT = (1 << 23) - 1  # the stream of the shifts of the strata, under the role BOUND
_LAST = 1 << 22  # the first stream of the noise of the reconstruction term
_WINDOW = 2  # strata on each side used to fit the weight of the control variate
_SHARE = 8  # levels per draw of the reconstruction term
_EARLIEST = 1e-12  # the first time of a schedule with noise at t = 0


class Span(NamedTuple):
    """The logsnr range of real numbers on a schedule, with the density p ~ sigmoid(logsnr + 2 log scale)."""

    clock: Schedule
    low: float
    high: float
    scale: float

    @classmethod
    def of(cls, schedule: Schedule, scale: float, sigma_min: float | None = None) -> Span:
        """From sigma/alpha = sigma_min (default: exp(-6) scale), or the schedule's own start if noisier, to t = 1."""
        low, own = schedule.logsnr_range
        least = scale * math.exp(-NODE_LIMIT / 2) if sigma_min is None else float(sigma_min)
        high = min(own, -2 * math.log(least)) if least > 0 else math.inf
        if not low < high < math.inf:
            end = math.exp(-low / 2) if low > -1400 else math.inf
            raise SfumatoError(f"sigma_min must lie above 0 and below sigma/alpha = {end:g} at t = 1, got {least:g}.")
        return cls(schedule, low, high, scale)

    @property
    def _ends(self) -> tuple[float, float]:
        ends = torch.tensor([self.low, self.high], dtype=torch.float64) + 2 * math.log(self.scale)
        low, high = torch.nn.functional.softplus(ends).tolist()
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        """logsnr, increasing from low at u = 0 to high at u = 1."""
        low, high = self._ends
        mass = low + u * (high - low)
        return (mass + torch.log(-torch.expm1(-mass)) - 2 * math.log(self.scale)).clamp(self.low, self.high)

    def density(self, logsnr: Tensor) -> Tensor:
        low, high = self._ends
        return torch.sigmoid(logsnr + 2 * math.log(self.scale)) / (high - low)


class SymbolSpan(NamedTuple):
    """The levels of symbols from low to high, with the density p ~ sech((level - centre) / 2)."""

    clock: Schedule
    low: float
    high: float
    centre: float = 0.0

    @property
    def _ends(self) -> tuple[float, float]:
        """The probability above low and above high."""
        ends = torch.tensor([self.low, self.high], dtype=torch.float64) - self.centre
        low, high = CosMap().survival(ends).tolist()
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        """The level, increasing from low at u = 0 to high at u = 1."""
        low, high = self._ends
        return (CosMap().quantile(low + u * (high - low)) + self.centre).clamp(self.low, self.high)

    def density(self, level: Tensor) -> Tensor:
        low, high = self._ends
        return CosMap().pdf(level - self.centre) / (low - high)


def check(steps: int, probes: int) -> None:
    """Raise SfumatoError unless there is at least one level, and two replicates for the standard error."""
    if steps < 1 or probes < 2:
        raise SfumatoError(f"The bound needs at least 1 level and 2 replicates, got steps={steps}, probes={probes}.")


def places(seed: int, index: Tensor, probes: int, strata: int) -> Tensor:
    """u in (0, 1), float64 (B, R, K): one per stratum, with a common uniform shift within each replicate."""
    shift = noise.uniform(seed, index, (probes, 1), noise.BOUND, _SHIFT, dtype=torch.float64)
    return (shift + torch.arange(strata)) / strata


def copies(model: Any, x: State, index: Tensor, cond: Conditions, seed: int, t: Tensor, first: int = 0) -> Noised:
    """n copies of each sample at its times t (B, n), flattened to B n draws: copy k uses noise stream first + k."""
    row = torch.arange(len(index)).repeat_interleave(t.shape[1])
    stream = (first + torch.arange(t.shape[1])).repeat(len(index))
    source, times = Noise(seed, index[row], noise.BOUND, stream), t.flatten().to(first_leaf(x).device)
    return Noised(model.process, x, cond, row, times, source, max(_ROWS, len(index)))


def eps_error(belief: Estimate, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """|eps - E[eps|z]|^2, float64 (B,), from eps or from x, whichever is more precise at the level."""
    by_eps = (eps - belief.eps.to(torch.float64)).flatten(1).square().sum(1)
    by_x = (x - belief.x.to(torch.float64)).flatten(1).square().sum(1)
    return torch.where(logsnr > 0, by_eps, logsnr.clamp_max(0).exp() * by_x)


def decoder_nats(belief: Estimate, x: Tensor, eps: Tensor, span: Span, cells: Cells | None = None) -> Tensor:
    """-log p(x|z_0), float64 (B,), from the belief about z_0: of integers if `cells` are passed, else a density."""
    precision = torch.tensor([span.high, -2 * math.log(span.scale)], dtype=torch.float64).logsumexp(0)
    log_std = torch.full_like(x, -0.5 * float(precision))
    if cells is not None:
        return cell_nats(x, belief.x.to(torch.float64), log_std, cells)
    if span.high > 0:  # E[x|z] - x = sigma / alpha (eps - E[eps|z])
        return density_nats(math.exp(-span.high / 2) * (belief.eps.to(torch.float64) - eps), log_std)
    return density_nats(x - belief.x.to(torch.float64), log_std)


def elbo(
    model: Model,
    x: Tensor,
    index: Tensor,
    cond: Conditions,
    steps: int = 64,
    probes: int = 8,
    seed: int = 0,
    sigma_min: float | None = None,
    cells: Cells | None = None,
) -> Measured:
    """The bound for normalised x (B, *shape), float64, samples `index`, by `probes` replicates of `steps` levels.

    cells: of integer data, for the probability of x; None for a density in normalised units.
    """
    check(steps, probes)
    span, dtype = Span.of(model.process.schedule, data_scale(model), sigma_min), compute_dtype(model)
    linear = LinearDenoiser(span.scale)
    logsnr = span.quantile(places(seed, index, probes, steps))
    lam, levels = logsnr.flatten(), copies(model, x, index, cond, seed, span.clock.time(logsnr).flatten(1))
    draws = max(1, steps // _SHARE)
    least = torch.full((len(x), probes * draws), span.high, dtype=torch.float64)
    ends = copies(model, x, index, cond, seed, span.clock.time(least), _LAST)

    def diffusion(part: Tensor) -> dict[str, Tensor]:
        drawn = levels.take(part)
        error = eps_error(model(drawn.z.to(dtype), drawn.t, **drawn.cond), drawn.x, drawn.eps, lam[part].to(x.device))
        return {"model": error, "linear": linear.error(lam[part], drawn.x, drawn.eps)}

    def reconstruction(part: Tensor) -> dict[str, Tensor]:
        drawn = ends.take(part)
        nats = decoder_nats(model(drawn.z.to(dtype), drawn.t, **drawn.cond), drawn.x, drawn.eps, span, cells)
        control = linear.error(least.flatten()[part], drawn.x, drawn.eps) - linear.mean(span.high, drawn.x)
        return {"nats": nats, "control": control}

    errors = {name: each.reshape(logsnr.shape) for name, each in levels.table(model, diffusion).items()}
    last = {name: each.reshape(len(x), probes, draws) for name, each in ends.table(model, reconstruction).items()}
    edges = span.quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    # the integral over each stratum, for the model and for the linear denoiser as a control variate
    scale = 0.5 / span.density(logsnr) / steps
    mean = linear.integral(edges, x).diff()[:, None].expand_as(logsnr)
    by_level = controlled(errors["model"] * scale, errors["linear"] * scale - mean, mean, _WINDOW)
    nats = controlled(last["nats"], last["control"], torch.ones_like(last["nats"]), draws).mean(2)
    return _measured("elbo", model, x, by_level, nats, edges)


@final
class Strata:
    """The levels of any process: strata assigned in turn to a `Span` and a `SymbolSpan`, as its parts need.

    start: the time of the first level; 0 if no part has noise there.
    """

    def __init__(self, process: Any, sigma_min: float | None) -> None:
        parts = [*getattr(process, "processes", {"": process}).values()]
        real = next((part for part in parts if isinstance(part, Gaussian | Spectral)), None)
        symbols = next((part for part in parts if not isinstance(part, Additive)), None)
        self.start, self.spans = 0.0, list[Span | SymbolSpan]()
        embedded = next((part for part in parts if isinstance(part, Embedded)), None)
        if embedded is not None:  # dense where alpha |E_k| = sigma
            span = Span.of(embedded.schedule, embedded.scale, sigma_min)
            self.spans.append(SymbolSpan(span.clock, span.low, span.high, -math.log(embedded.dim * embedded.scale**2)))
            self.start = float(embedded.schedule.time(span.high))
        if real is not None:
            scale = real.sigma_data if isinstance(real, Gaussian) else 1.0  # the clock of a total is in deviations
            self.spans.append(span := Span.of(real.clock, scale, sigma_min))
            self.start = max(self.start, float(real.clock.time(span.high)))
        if symbols is not None:
            low, high = symbols.clock.logsnr_range
            high = min(high, float(symbols.clock.logsnr(self.start))) if self.start else high
            self.spans.append(SymbolSpan(symbols.clock, low, high))
        self.alone = len(self.spans) == 1
        self.open = self.alone and self.spans[0].clock.logsnr_range[1] == math.inf and not self.start

    def times(self, u: Tensor) -> Tensor:
        """t at quantiles u in (0, 1), (B, R, K): each quantile once per span, (B, R, K spans)."""
        return torch.stack([span.clock.time(span.quantile(u)) for span in self.spans], 3).flatten(2)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """The density of the mixture of spans, in terms of this clock's level."""
        t, total = schedule.time(logsnr), torch.zeros_like(logsnr)
        for span in self.spans:
            level = logsnr if span.clock == schedule else span.clock.logsnr(t)
            rate = 1.0 if span.clock == schedule else (span.clock.dlogsnr(t) / schedule.dlogsnr(t)).abs()
            total = total + span.density(level) * rate
        return total / len(self.spans)


def path_bound(
    model: Any,
    x: State,
    index: Tensor,
    cond: Conditions,
    steps: int = 64,
    probes: int = 8,
    seed: int = 0,
    sigma_min: float | None = None,
) -> Measured:
    """The bound of any process for clean states x (B, ...) with sample numbers `index`, by `Process.loss`."""
    check(steps, probes)
    process, strata = model.process, Strata(model.process, sigma_min)
    each = -(-steps // len(strata.spans))
    t = strata.times(places(seed, index, probes, each).clamp_max(1 - 1e-12))
    levels = copies(model, x, index, cond, seed, t.flatten(1))
    start = torch.full((len(index), probes), strata.start or _EARLIEST, dtype=torch.float64)
    ends = copies(model, x, index, cond, seed, start, _LAST)

    def diffusion(part: Tensor) -> Tensor:
        drawn = levels.take(part)
        belief = model(drawn.z, drawn.t, **drawn.cond)
        return process.loss(belief, drawn.x, drawn.eps, torch.ones_like, strata)

    def reconstruction(part: Tensor) -> Tensor:
        drawn = ends.take(part)
        return model(drawn.z, drawn.t, **drawn.cond).nats(drawn.x)

    by_level = levels.each(model, diffusion).reshape(t.shape) / t.shape[2]
    last = torch.zeros(len(index), probes, dtype=torch.float64)
    if not strata.open:
        last = ends.each(model, reconstruction).reshape(last.shape)
    edges = strata.spans[0].quantile(torch.linspace(0, 1, each + 1, dtype=torch.float64)) if strata.alone else None
    return _measured("path bound", model, x, by_level, last, edges)


def count_bound(
    model: Any,
    x: Tensor,
    index: Tensor,
    cond: Conditions,
    steps: int = 64,
    probes: int = 8,
    seed: int = 0,
    sigma_min: float | None = None,
) -> Measured:
    """The bound of masked symbols x (B, *shape), by `steps` counts of masks in each of `probes` replicates.

    A count is ceil(v D) with v in one of `steps` strata of (0, 1): a multiple of D has every count equally often.
    """
    check(steps, probes)
    share = 1 - places(seed, index, probes, steps)
    n = counted(share, x).flatten()
    levels = copies(model, x, index, cond, seed, share.flatten(1).double())

    def diffusion(part: Tensor) -> Tensor:
        drawn = levels.take(part)
        z, t = masked(model.process, drawn.x, n[part], drawn.eps)
        at = z == model.process.mask
        return masked_nats(masked_logits(model, z, t, at, **drawn.cond), drawn.x, at, n[part])

    by_level = levels.each(model, diffusion).reshape(share.shape) / steps
    edges = torch.logit(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    last = torch.zeros(len(index), probes, dtype=torch.float64)
    return _measured("bound by exact counts of masks", model, x, by_level, last, edges)


def _measured(name: str, model: Any, x: State, by_level: Tensor, last: Tensor, edges: Tensor | None) -> Measured:
    """The `Measured` of the diffusion terms (B, R, K) and the last term (B, R) in nats; edges: of the K levels."""
    prior, mean, (probes, steps) = model.process.prior_kl(x).cpu(), by_level.mean(1), by_level.shape[1:]
    value, stderr, third = pooled(-(prior[:, None] + by_level.sum(2) + last))
    parts = getattr(model.process, "processes", {"": model.process})
    each = x if isinstance(x, Mapping) else {"": x}
    entries = [each[name][0].numel() // getattr(part, "dim", 1) for name, part in parts.items()]
    return Measured(
        value, stderr, third, None, None, None, f"{name}, {probes} replicates", sum(entries), probes, steps, bound=True,
        prior=prior, diffusion=mean.sum(1), reconstruction=last.mean(1), by_level=None if edges is None else mean,
        levels=edges,
    )  # fmt: skip
