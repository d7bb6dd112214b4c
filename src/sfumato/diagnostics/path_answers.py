"""What a flow map says of paths: the spread of its samples of one call, and whether the end of a path reaches it."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.flow_map import angle, time
from sfumato.noised import evaluating

PATHS = 256  # of a measurement


@final
@dataclasses.dataclass(frozen=True)
class PathAnswers:
    """spread: the standard deviation of X(z, 1, 0) over z ~ N(0, sigma_1^2), as a part of the data's; response:
    E|F(z, t, s) - F(z, t, s')|^2 / E|F(z, t, s)|^2 for two ends s, s' of the paths of the same states.
    """

    spread: float
    response: float


@torch.no_grad()
def ask_of_paths(model: Any, x: Tensor, cond: Conditions, seed: int = 0) -> PathAnswers:
    """A flow map's answers, with the data's conditions in turn. x: normalised samples (N, *shape)."""
    process, index = model.process, torch.arange(PATHS)
    rows = index % len(x)
    given, each = cond.rows(rows).to(model.device), torch.ones(PATHS, dtype=torch.float64)
    clean = x[rows].to(model.device)
    eps = noise.normal(seed, index, x.shape[1:], noise.PROBE).to(clean)
    top = angle(process, 1.0)
    with evaluating(model):
        samples = model(process.prior(eps), each, until=0 * each, **given).to(0 * each)
        t = time(process, 0.75 * top * each)
        z = process.corrupt(clean, t, eps)
        one, other = (model.mean(z, t, time(process, part * top * each), **given).double() for part in (0.05, 0.6))
    spread, known = (v.double().std(0).square().mean().sqrt() for v in (samples, x))
    response = (one - other).square().mean() / one.square().mean().clamp_min(1e-30)
    return PathAnswers(float(spread / known.clamp_min(1e-30)), float(response))
