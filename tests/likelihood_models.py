"""What the tests of likelihoods share: laws, and an exact model seen as if it were a network or had units."""

import torch

from sfumato import data, schedules
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian

PROCESSES = {
    "vp": Gaussian(schedules.LinearBeta()),
    "cosine": Gaussian(schedules.Cosine()),
    "edm": Gaussian(schedules.EDM()),
    "ve": Gaussian(schedules.VE(0.01, 157.0)),
    "flow": Gaussian(schedules.Flow()),
    "table": Gaussian(schedules.FromBetas.ddpm()),
}


def plane():
    """Five narrow components in 2-D, standard deviations 0.07 to 0.38."""
    g = torch.Generator().manual_seed(3)
    stds = 0.07 + 0.31 * torch.rand(5, 2, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 2, 2, generator=g, dtype=torch.float64))[0]
    return GaussianMixture(torch.ones(5), torch.randn(5, 2, generator=g), turn @ torch.diag_embed(stds**2) @ turn.mT)


def ranks(dim=64, count=6, rank=4, rest=0.056):
    """Components of low rank: of standard deviation `rest` off it, and of total variance near dim."""
    g = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(count, dim, rank, generator=g, dtype=torch.float64))[0]
    means = torch.randn(count, dim, generator=g, dtype=torch.float64) * 0.8
    covs = rest**2 * torch.eye(dim, dtype=torch.float64) + 0.05 * dim / rank * basis @ basis.mT
    return GaussianMixture(torch.ones(count), means, covs)


class Plain:
    """A model of which nothing is known but its answers."""

    def __init__(self, inner, spec=None):
        self.inner, self.process, self.shape, self.spec = inner, inner.process, inner.shape, spec

    def __call__(self, z, t, **cond):
        return self.inner(z, t, **cond)


def spec_of(x):
    """A data spec whose statistics are those of all of x."""
    source = data.open(x)
    return data.DataSpec.fit(source, torch.arange(len(source)))
