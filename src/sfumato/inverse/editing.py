"""Variations of a sample: noise up to a level, and the way back from there (SDEdit)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, whole
from sfumato.noise import PRIOR, Noise
from sfumato.process.gaussian import require_numbers
from sfumato.sampling import sample


def vary(model: Any, x: Any, strength: float, n: int = 16, seed: int = 0, **how: Any) -> Tensor:
    """n samples of z_0 given z_t = alpha x + sigma n, in user units: variations of x (*shape), in user units.

    strength: sigma / (alpha + sigma) at t, between 0 (x itself) and 1 (samples that have forgotten x).
    how: other arguments of `sf.sample`, such as steps, solver and conditions. Source: Meng et al. 2021 (2108.01073).
    """
    require_numbers(model, "A variation of a sample", "symbols that are kept stay in an infilling")
    if not 0 < strength <= 1:
        raise SfumatoError(f"The strength of a variation lies above 0 and is at most 1, not {strength:g}.")
    spec, x = getattr(model, "spec", None), torch.as_tensor(x)[None]
    if spec is not None:
        spec.check(x)
    clean = x if spec is None else spec.normalise(x)
    clean = clean.expand(whole("n", n), *clean.shape[1:])
    level = torch.logit(torch.tensor(strength, dtype=torch.float64))
    t = float(model.process.schedule.time(-2 * level))
    z = model.process.corrupt(clean.to(getattr(model, "device", clean.device)), t, Noise(seed, torch.arange(n), PRIOR))
    return sample(model, z=z, seed=seed, t_start=t, **how)
