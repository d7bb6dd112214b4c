"""The denoising loss, which covers every simple objective of the literature by its weight and time density.

    loss = 1/2 * w(logsnr) / p(logsnr) * |eps - eps_hat|^2,   logsnr ~ p

an unbiased estimate of 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr (Kingma and Gao 2023, 2303.00848, Eq. 6). The
process computes the loss from the model's belief: for symbols it is the path KL at the level (`process.symbols`), for a
product the sum over its parts. A wrapped model is therefore judged by the belief of its wrapper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import present, require_encoded, unfolded
from sfumato.machine import default_cpu
from sfumato.model import AnyModel
from sfumato.noise import Noise
from sfumato.objectives.teacher import Clean, Corrupted
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.objectives.weights import Weight, chosen
from sfumato.process import added, given
from sfumato.schedule import Time, as_time
from sfumato.state import State, first_leaf


@default_cpu()
def denoising_loss(
    denoiser: AnyModel,
    x: State,
    t: Time | None = None,
    weight: Weight | str | None = None,
    times: TimeDensity | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    eps: State | None = None,
    clean: Clean | None = None,
    **cond: Any,
) -> Tensor:
    """One loss per sample, at least float32 (B,), summed over the sample's elements (nats for weight = elbo).

    denoiser: any model. x: normalised data (B, ...), symbols, or a dict of parts. t: times (B,), by default drawn from
    `times` (uniform in t by default); explicit t are treated as drawn from `times` too. eps: the noise, by default
    drawn. Both draws depend on (seed, index) alone; index defaults to 0..B-1. weight: w(level), or its name; None means
    the plain squared error of the target, 1/2 |y - y_hat|^2, and for symbols the ELBO.
    clean: replaces x and eps by E[x | z] and E[eps | z] of a teacher or a reference batch (`objectives.teacher`).
    cond: encoded conditions, tensors or `Given` of B rows, as `**sf.conditions.resolve(denoiser,
    {"temperature": 300.0}, B)` returns for the user's values; cond={...} passes those that share an argument's name.
    """
    times, weight, conditions = times or UniformTime(), chosen(weight), unfolded(cond)
    require_encoded(conditions)
    process = given(denoiser.process, conditions)
    x = process.data(x)
    index, t, source = drawn_inputs(process, x, t, times, seed, index, eps)
    t, drawn = as_time(t).expand(len(index)), added(process, source, x)
    z = process.corrupt(x, t, drawn)
    if clean is not None:
        x, drawn = clean(Corrupted(process, x, drawn, z, t, seed, index, conditions))
    here = present(conditions)
    mask = {} if here is None else {"here": here}
    return process.loss(denoiser(z, t, **conditions), x, drawn, weight, times, **mask)


def drawn_inputs(
    process: Any,
    x: State,
    t: Time | None,
    times: TimeDensity,
    seed: int,
    index: Tensor | Sequence[int] | None,
    eps: State | None,
) -> tuple[Tensor, Any, Noise | State]:
    """(index, t, eps) of a loss, (B,), (B,) and eps as given; without, t is drawn from (seed, index), and eps is the
    source of its numbers."""
    index = torch.arange(len(first_leaf(x))) if index is None else torch.as_tensor(index)
    if t is None:
        t = process.clock.time(times.logsnr(times.levels(seed, index, noise.TRAIN_TIME), process.clock))
    return index, t, Noise(seed, index, noise.TRAIN_NOISE) if eps is None else eps
