"""Losses from the discrete-time bound: L_vlb at one random level per sample, and the hybrid loss.

    L_vlb    = T L_k / p(t),   k = ceil(T t), t ~ p      L_k: the step from k / T to (k - 1) / T; L_1: the step to data
    L_hybrid = L_simple + share L_vlb                    L_vlb trains only the variance; its mean is detached

E L_vlb is the bound of `vlb` on T levels without L_T, for any p. Both losses use the noise level k / T.
Source: Nichol and Dhariwal 2021 (2102.09672), Eq. 16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from sfumato import target
from sfumato.belief import Estimate
from sfumato.conditions import unfolded
from sfumato.errors import SfumatoError
from sfumato.machine import default_cpu
from sfumato.model import Denoiser
from sfumato.objectives.chain import check_variance, data_nats, step_nats
from sfumato.objectives.decoder import Cells
from sfumato.objectives.denoising import drawn_inputs
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.times import UniformTime
from sfumato.objectives.vlb import chosen_cells
from sfumato.objectives.weights import Weight
from sfumato.process import Gaussian
from sfumato.process.gaussian import require_numbers
from sfumato.schedule import Schedule
from sfumato.state import numbers_like

# Levels of the bound in training. With many levels, beta and beta_tilde of a step nearly agree, and nothing is learned
# of the v that sampling in few steps needs: trained with 1000, 20 steps are worse than with beta; with 200, better.
STEPS = 200


def level_nats(
    process: Gaussian, belief: Estimate, x: Tensor, eps: Tensor, steps: int, variance: str, cells: Cells | None
) -> Tensor:
    """T L_k in nats, (B,), at the levels belief.t = k / T, (B,)."""
    level, total = (belief.t * steps).round().expand(len(x)), torch.zeros_like(x.flatten(1)[:, 0])
    first = level == 1
    for rows in (torch.nonzero(first)[:, 0], torch.nonzero(~first)[:, 0]):
        if not len(rows):
            continue
        part, k = belief.rows(rows), level[rows]
        if bool(first[rows[0]]):
            above = (k + 1) / steps if steps > 1 else None
            nats = data_nats(process, part, x[rows], eps[rows], above, variance, cells)
        else:
            nats = step_nats(process, part, x[rows], eps[rows], (k - 1) / steps, variance)
        total = total.index_put((rows,), nats.to(total))
    return steps * total


def on_grid(t: Tensor, steps: int) -> Tensor:
    """The level ceil(T t) / T of a time in (0, 1]."""
    if steps < 1:
        raise SfumatoError(f"The bound needs at least 1 level, got {steps}.")
    return (t * steps - 1e-9).ceil().clamp(1, steps) / steps  # the slack keeps levels on the grid despite rounding


def level_density(times: TimeDensity, schedule: Schedule, t: Tensor) -> Tensor:
    """p(t) = p(logsnr) |dlogsnr/dt|, float64 (B,)."""
    return times.density(schedule.logsnr(t), schedule) * schedule.dlogsnr(t).abs()


@default_cpu()
def vlb_loss(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor | None = None,
    times: TimeDensity | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    eps: Tensor | None = None,
    steps: int = STEPS,
    variance: str = "posterior",
    decoder: str = "auto",
    **cond: Any,
) -> Tensor:
    """L_vlb = T L(t) / p(t) in nats per sample (B,), with gradients of mean and variance.

    x: normalised data (B, ...). t, times, seed, index and eps as in `denoising_loss`; `history.LossHistory` as `times`
    gives the paper's importance sampling. variance and decoder as in `vlb`. Sources: 2006.11239, Eq. 5; 2102.09672.
    """
    require_numbers(denoiser, "The bound of T Gaussian steps", "take denoising_loss, whose weight 1 is a bound")
    check_variance(variance)
    times, process = times or UniformTime(), denoiser.process
    _, t, source = drawn_inputs(process, x, t, times, seed, index, eps)
    eps = numbers_like(source, x)
    level = on_grid(t, steps)
    belief = denoiser(process.corrupt(x, level, eps), level, **unfolded(cond))
    cells = chosen_cells(getattr(denoiser, "spec", None), decoder)
    nats = level_nats(process, belief, x, eps, steps, variance, cells)
    return nats / level_density(times, process.schedule, t).to(nats)


@final
@dataclasses.dataclass(frozen=True)
class Defensive(TimeDensity):
    """p = share uniform in t + (1 - share) base: no level is weighted by more than 1 / share (Hesterberg 1995)."""

    base: TimeDensity
    share: float = 0.25

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        first, uniform = u < self.share, UniformTime()
        even = uniform.logsnr(torch.where(first, u / self.share, 0.5), schedule)
        rest = ((u - self.share) / (1 - self.share)).clamp_min(1e-9)
        return torch.where(first, even, self.base.logsnr(rest, schedule))

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        even = UniformTime().density(logsnr, schedule)
        return self.share * even + (1 - self.share) * self.base.density(logsnr, schedule)


@default_cpu()
def hybrid_loss(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor | None = None,
    weight: Weight | None = None,
    times: TimeDensity | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    eps: Tensor | None = None,
    steps: int = STEPS,
    share: float = 1e-3,
    stop_mean: bool = True,
    decoder: str = "auto",
    **cond: Any,
) -> Tensor:
    """L_simple + share L_vlb / 2 per sample (B,): `denoising_loss` at k / T and the bound of T = `steps` levels.

    The factor 1/2 matches `denoising_loss`: twice the loss over the number of elements is the mean squared error plus
    share L_vlb per dimension. L_vlb trains only the variance, with the mean detached (`stop_mean`), so that share acts
    as a learning rate, not a trade-off. Other arguments as in `denoising_loss`. Source: 2102.09672, Eq. 16.
    """
    require_numbers(denoiser, "The hybrid loss", "take denoising_loss, whose weight 1 is a bound")
    if getattr(denoiser, "variance", "fixed") != "learned":
        raise SfumatoError("The hybrid loss trains a learned variance: build the denoiser with variance='learned'.")
    times, process, schedule = times or UniformTime(), denoiser.process, denoiser.process.schedule
    _, t, source = drawn_inputs(process, x, t, times, seed, index, eps)
    eps = numbers_like(source, x)
    level = on_grid(t, steps)
    belief = denoiser(process.corrupt(x, level, eps), level, **unfolded(cond))
    simple = process.loss(belief, x, eps, None, times)
    if weight is not None:  # p at the drawn time t: at k / T it may be infinite or 0
        row, logsnr = target.row(denoiser.target, schedule, level, denoiser.sigma_data), schedule.logsnr(t)
        scale = weight(logsnr) / times.density(logsnr, schedule) * target.error_scale(row, *schedule(level))
        simple = simple * scale.to(simple)
    if stop_mean:
        belief = belief.stopped()
    cells = chosen_cells(denoiser.spec, decoder)
    nats = level_nats(process, belief, x, eps, steps, "learned", cells)
    return simple + 0.5 * share * nats / level_density(times, schedule, t).to(nats)
