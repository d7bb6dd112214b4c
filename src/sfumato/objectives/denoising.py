"""The denoising loss: every simple objective of the literature is this one with two dials.

    loss = 1/2 * w(logsnr) / p(logsnr) * |eps - eps_hat|^2,   logsnr ~ p

an unbiased estimate of 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr (Kingma and Gao 2023, 2303.00848, Eq. 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise, target
from sfumato.belief import broadcast
from sfumato.model import Denoiser
from sfumato.objectives.factor import factor, finite
from sfumato.objectives.teacher import Clean, Corrupted
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.objectives.weights import Weight
from sfumato.schedule import Time, as_time


def denoising_loss(
    denoiser: Denoiser,
    x: Tensor,
    t: Time | None = None,
    weight: Weight | None = None,
    times: TimeDensity | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    eps: Tensor | None = None,
    clean: Clean | None = None,
    **cond: Any,
) -> Tensor:
    """One loss per sample, float32 or better (B,), summed over the sample's elements (nats where weight = elbo).

    x: normalised data (B, ...). t: noise levels (B,), or drawn from `times` (uniform in t by default); given t
    count as drawn from `times` all the same. eps: the noise, or drawn. Both draws depend on (seed, index) alone;
    index defaults to 0..B-1. weight: w(logsnr); None is the plain squared error of the target, 1/2 |y - y_hat|^2.
    clean: E[x | z] and E[eps | z] by a teacher or a reference batch in place of x and eps (`objectives.teacher`).
    """
    times = times or UniformTime()
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    schedule = denoiser.process.schedule
    if t is None:
        t = schedule.time(times.logsnr(times.levels(seed, index, noise.TRAIN_TIME), schedule))
    t = as_time(t).expand(len(x))
    if eps is None:
        eps = noise.normal(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, device=x.device, dtype=x.dtype)
    z = denoiser.process.corrupt(x, t, eps)
    row = target.row(denoiser.target, schedule, t, denoiser.sigma_data)
    if clean is not None:
        x, eps = clean(Corrupted(denoiser.process, x, eps, z, t, seed, index, cond))
    wanted = broadcast(row.a, x) * x + broadcast(row.b, x) * eps
    error = (denoiser.predict(z, t, **cond) - wanted).flatten(1).square().sum(1)
    if weight is None:
        return 0.5 * error
    scale = factor(schedule, row, t, times, weight)
    if scale.device.type == "cpu":  # elsewhere the question would make the device wait
        finite(scale.detach(), schedule.logsnr(t))
    return 0.5 * scale.to(error) * error
