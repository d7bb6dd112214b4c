"""log p of the values that are present: of sequences up to their ends, of samples with missing values.

    x' = (x_present, 0),   E'[x | z] = E[x | z] where present,  alpha s^2 / (alpha^2 s^2 + sigma^2) z elsewhere
    log p(x_present | what is present) = log p'(x') + (D - n) / 2 log(2 pi s^2)        of n present values of D

The other D - n values are made those of an independent N(0, s^2), whose log p at 0 is known and taken away again. The
network hears of them what it heard in training: 0 beyond the end of a sequence, and otherwise noise alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.likelihood.measured import Measured
from sfumato.probability_flow import data_scale
from sfumato.schedule import Time

_UNHEARD = 1 << 18  # the stream of the noise of missing values, under the role PROBE


class Present:
    """A model of what is present in B samples, `here`, bool (B, *shape), with a known law of the rest.

    numbers: of the samples, by which their noise is drawn.
    """

    def __init__(self, inner: Any, here: Tensor, seed: int, numbers: Tensor) -> None:
        self.inner, self.process, self.sigma_data = inner, inner.process, data_scale(inner)
        self.parameters = getattr(inner, "parameters", lambda: iter(()))
        self.here, eps = here, torch.zeros(here.shape, dtype=torch.float64, device=here.device)
        if getattr(inner.spec, "lengths", None) is None:
            shape = tuple(here.shape[1:])
            eps = noise.normal(seed, numbers, shape, noise.PROBE, _UNHEARD, here.device, torch.float64)
        self.eps = eps

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        copies = (len(z) // len(self.here), *(1,) * (z.ndim - 1))  # as `probability_flow.Field.linear` repeats them
        here, eps = self.here.repeat(copies), self.eps.repeat(copies).to(z)
        alpha, sigma = (float(each) for each in self.process.schedule(t))
        belief = self.inner(torch.where(here, z, sigma * eps), t, **cond)
        share = z / (alpha**2 * self.sigma_data**2 + sigma**2)
        x = torch.where(here, belief.x, alpha * self.sigma_data**2 * share)
        return Estimate(z, t, self.process.schedule, x=x, eps=torch.where(here, belief.eps, sigma * share))

    def alone(self, found: Measured) -> Measured:
        """The figures of all values, as those of the present ones."""
        numbers = self.here.flatten(1).sum(1).cpu()
        rest = found.dim - numbers.double()
        found = found.shifted(rest / 2 * math.log(2 * math.pi * self.sigma_data**2))
        return dataclasses.replace(found, numbers=numbers)


def require_ode(method: str, spec: Any) -> None:
    """Raise SfumatoError for other ways to the likelihood of what is present."""
    if method != "ode":
        what = "sequences that end before the longest" if spec.lengths is not None else "samples with missing values"
        raise SfumatoError(f"The likelihood of {what} is known by the ODE alone: take method='ode' (--method ode).")
