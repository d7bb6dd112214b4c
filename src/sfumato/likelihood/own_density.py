"""The gap between a model's score and the density of its own flow, by which its ODE and SDE draw different laws.

    log p_t(z) = log N(z_1; 0, sigma_1^2) + int_t^1 div(dz/dt) dt
    gap = E[(v.grad log p_t - v.score)^2] / E[(v.score)^2]

Both are equal for a score that solves the Fokker-Planck equation. v: random directions, along which log p_t is
differentiated by differences. Sources: Song et al. 2021 (2011.13456), Eq. 39; Lai et al. 2023 (2210.04296).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions, resolve
from sfumato.intervals import Interval, around
from sfumato.likelihood.flow import DEFAULT_STEPS, noised_log_prob
from sfumato.machine import default_cpu
from sfumato.model import Model
from sfumato.noised import evaluating
from sfumato.process.gaussian import require_numbers

_WIDTH = 0.03  # of a difference, in units of sigma


@default_cpu()
@torch.no_grad()
def density_gap(model: Model, z: Tensor, t: float, steps: int = DEFAULT_STEPS, seed: int = 0, **cond: Any) -> Interval:
    """The share of the score's square by which it is not the gradient of its ODE's log-density: 0 for an exact model.

    z: noised states (B, *shape) at time t, 0 < t < 1, as the model is called with them: process.corrupt(x, t, eps).
    steps: of the ODE, each 4 calls and an exact trace of d products with the Jacobian, for samples of up to some
    hundred numbers. A curl that leaves the law unchanged is seen here, too. Raises SfumatoError for symbols.
    """
    require_numbers(model, "The gap of a density", "their log_prob is a bound")
    given: Conditions = resolve(model, cond, len(z)).to(z.device)
    v = noise.normal(seed, torch.arange(len(z)), tuple(z.shape[1:]), noise.PROBE, 600, z.device, torch.float64)
    width = _WIDTH * float(model.process.schedule.sigma(t))
    with evaluating(model):
        above, below = (noised_log_prob(model, z.double() + sign * width * v, t, given, steps) for sign in (1, -1))
        score = (model(z, t, **given).score.double() * v).flatten(1).sum(1).cpu()
    off, square = ((above - below) / (2 * width) - score).square(), score.square()
    value = float(off.mean() / square.mean())
    error = float(((off - value * square) / square.mean()).std()) / math.sqrt(len(z))
    return around(value, error, len(z) - 1)
