"""The denoising loss: every simple objective of the literature is this one with two dials.

    loss = 1/2 * w(logsnr) / p(logsnr) * |eps - eps_hat|^2,   logsnr ~ p

an unbiased estimate of 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr (Kingma and Gao 2023, 2303.00848, Eq. 6). What is
lost is the process's to say, of what the model believes: of symbols it is the path KL at the level (`process.symbols`),
of a product the sum over its parts. So the loss of whatever wraps a model is that of the wrapper's belief.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import require_encoded, unfolded
from sfumato.model import AnyModel
from sfumato.noise import Noise
from sfumato.objectives.teacher import Clean, Corrupted
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.objectives.weights import Weight
from sfumato.schedule import Time, as_time
from sfumato.state import State, first_leaf, numbers_like


def denoising_loss(
    denoiser: AnyModel,
    x: State,
    t: Time | None = None,
    weight: Weight | None = None,
    times: TimeDensity | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    eps: State | None = None,
    clean: Clean | None = None,
    **cond: Any,
) -> Tensor:
    """One loss per sample, float32 or better (B,), summed over the sample's elements (nats where weight = elbo).

    denoiser: any model. x: normalised data (B, ...), symbols, or a dict of parts. t: noise levels (B,), or drawn from
    `times` (uniform in t by default); given t count as drawn from `times` all the same. eps: the noise, or drawn. Both
    draws depend on (seed, index) alone; index defaults to 0..B-1. weight: w(level); None is the plain squared error of
    the target, 1/2 |y - y_hat|^2, and the ELBO's of symbols.
    clean: E[x | z] and E[eps | z] by a teacher or a reference batch in place of x and eps (`objectives.teacher`).
    cond: conditions, encoded: tensors or `Given` of B rows, such as `**sf.conditions.resolve(denoiser,
    {"temperature": 300.0}, B)` makes of the user's values; cond={...} holds those whose names are arguments here.
    """
    times, given = times or UniformTime(), unfolded(cond)
    require_encoded(given)
    process, x = denoiser.process, denoiser.process.data(x)
    index, t, drawn = drawn_inputs(process, x, t, times, seed, index, eps)
    t = as_time(t).expand(len(index))
    z = process.corrupt(x, t, drawn)
    if clean is not None:
        x, drawn = clean(Corrupted(process, x, drawn, z, t, seed, index, given))
    return process.loss(denoiser(z, t, **given), x, drawn, weight, times)


def drawn_inputs(
    process: Any,
    x: State,
    t: Time | None,
    times: TimeDensity,
    seed: int,
    index: Tensor | Sequence[int] | None,
    eps: State | None,
) -> tuple[Tensor, Any, State]:
    """(index, t, eps) of a loss: (B,), (B,) and like x; what is None is drawn from (seed, index) alone."""
    index = torch.arange(len(first_leaf(x))) if index is None else torch.as_tensor(index)
    if t is None:
        t = process.clock.time(times.logsnr(times.levels(seed, index, noise.TRAIN_TIME), process.clock))
    drawn = numbers_like(Noise(seed, index, noise.TRAIN_NOISE) if eps is None else eps, x)
    return index, t, drawn
