"""What a flow map says of paths: the spread of its samples of one call, what it hears of a path's end, how finely."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.noised import evaluating
from sfumato.objectives.angle_derivatives import WIDTH, derivative
from sfumato.process import given
from sfumato.process.angles import angle, time

PATHS = 256  # of a measurement


@final
@dataclasses.dataclass(frozen=True)
class PathAnswers:
    """spread: the standard deviation of X(z, 1, 0) over z ~ N(0, sigma_1^2), as a part of the data's; response:
    E|G(z, t, s) - G(z, t, s')|^2 / E|G(z, t, s)|^2 for two ends s, s' of the paths of the same states; unsteady: the
    difference of dF/dtheta_s as losses take it and over a width of four times theirs, root mean square, as a part of F.
    """

    spread: float
    response: float
    unsteady: float


@torch.no_grad()
def ask_of_paths(model: Any, x: Tensor, cond: Conditions, seed: int = 0) -> PathAnswers:
    """A flow map's answers, with the data's conditions in turn. x: normalised samples (N, *shape)."""
    index, each = torch.arange(PATHS), torch.ones(PATHS, dtype=torch.float64)
    told = cond.rows(index % len(x)).to(model.device)
    process = given(model.process, told)
    x = process.data(x.to(model.device))
    clean = x[index % len(x)]
    eps = noise.normal(seed, index, x.shape[1:], noise.PROBE).to(clean)
    top = angle(process, 1.0)
    with evaluating(model):
        samples = model(process.prior(eps), each, until=0 * each, **told).to(0 * each)
        t = time(process, 0.75 * top * each)
        z = process.corrupt(clean, t, eps)
        one, other = (model.answer(z, t, time(process, part * top * each), **told).double() for part in (0.05, 0.6))
        end = 0.3 * top * each
        near, far = (derivative(model, end, lambda s: model.mean(z, t, s, **told), width=w) for w in (WIDTH, 4 * WIDTH))
    size = one.square().mean().clamp_min(1e-30)
    spread, known = (v.double().std(0).square().mean().sqrt() for v in (samples, x))
    response, unsteady = (one - other).square().mean() / size, ((near - far).double().square().mean() / size).sqrt()
    return PathAnswers(float(spread / known.clamp_min(1e-30)), float(response), float(unsteady))
