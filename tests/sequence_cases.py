"""Sequences of several lengths whose law is known: AR(1) walks, their exact model and their density."""

import numpy as np
import torch

from sfumato import data
from sfumato.belief import Estimate
from sfumato.conditions import MISSING, Given
from sfumato.data import DataSpec
from sfumato.normaliser import Normaliser
from sfumato.process import Gaussian
from sfumato.schedules import Flow

RHO, STEPS, SHARES = 0.8, (3, 6, 9), (0.2, 0.3, 0.5)


def walks(count, channels=1, seed=0, dtype=np.float32):
    """Sequences (L, C) of AR(1) processes x_k = rho x_(k - 1) + sqrt(1 - rho^2) e_k of variance 1, of random length."""
    draw = np.random.default_rng(seed)
    made = []
    for length in draw.choice(STEPS, count, p=SHARES):
        x = draw.normal(size=(length, channels))
        for k in range(1, length):
            x[k] = RHO * x[k - 1] + np.sqrt(1 - RHO**2) * x[k]
        made.append(x.astype(dtype))
    return made


class Exact:
    """E[x | the z before the end] of these walks: C = a R (a^2 R + s^2)^-1 on the steps that are there."""

    def __init__(self, spec):
        self.spec, self.process, self.shape = spec, Gaussian(Flow(), "x"), spec.shape

    def __call__(self, z, t, **cond):
        gaps = Given.of(cond[MISSING]).values if MISSING in cond else torch.zeros_like(z)
        here = 1 - gaps.double()[:, 0]
        alpha, sigma = self.process.schedule(t)
        alpha, sigma = (v.double().reshape(-1, 1, 1) for v in (alpha, sigma))
        lag = torch.arange(z.shape[2])
        cov = RHO ** (lag[:, None] - lag).abs().double() * here[:, :, None] * here[:, None]
        inverse = alpha**2 * cov + sigma**2 * torch.eye(z.shape[2], dtype=torch.float64)
        x = alpha * cov @ torch.linalg.solve(inverse, (z.double()[:, 0] * here)[..., None])
        return Estimate(z, t, self.process.schedule, x=x.mT.to(z.dtype))


def exact(count=4000):
    x = walks(count)
    spec = DataSpec.fit(data.open(x))
    one = Normaliser((0.0,), (1.0,))
    return x, Exact(DataSpec(**{**vars(spec), "normaliser": one}))


def density(x, rho=RHO):
    """log p of the steps of a walk that are there."""
    at = torch.arange(len(x))[~torch.as_tensor(x[:, 0]).isnan()]
    cov = rho ** (at[:, None] - at).abs().double()
    law = torch.distributions.MultivariateNormal(torch.zeros(len(at), dtype=torch.float64), cov)
    return float(law.log_prob(torch.as_tensor(x)[at, 0].double()))
