"""An exact model in the plane and six faults put into it, which audits have to find."""

import torch

import sfumato as sf

LAW = sf.exact.GaussianMixture([0.3, 0.4, 0.3], [[-1.2, 0.5], [1.0, 0.2], [0.2, -1.1]], [0.12, 0.2, 0.05])
PROCESS = sf.Gaussian(sf.schedules.Cosine())
EXACT = LAW.denoiser(PROCESS)
MEAN = LAW.mean


class Faulty:
    """The exact model with x_hat changed: change(belief, z) -> x_hat, both ends of shape (B, 2)."""

    def __init__(self, change, exact=EXACT):
        self.process, self.shape, self.change, self.exact = exact.process, exact.shape, change, exact

    def __call__(self, z, t, **cond):
        belief = self.exact(z, t, **cond)
        return sf.Estimate(z, t, self.process.schedule, x=self.change(belief, z))


def column(value, z):
    return value.expand(len(z)).reshape(-1, 1).to(z)


def variance(belief, z):
    """sigma^2 / alpha, by which an error of the score is one of x_hat."""
    return column(belief.sigma**2 / belief.alpha, z)


def gain(belief, z):
    return MEAN + 1.03 * (belief.x - MEAN)


def level(belief, z):
    """The model hears a logsnr that is 0.2 too high."""
    schedule = PROCESS.schedule
    s = schedule.time(schedule.logsnr(belief.t) + 0.2)
    return EXACT(z * column(schedule.alpha(s) / belief.alpha, z), s).x


def curl(belief, z):
    """A tenth of the score, turned by 90 degrees: the law of the samples is unchanged."""
    turned = belief.score @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).to(z)
    return belief.x + 0.1 * variance(belief, z) * turned


def bump(belief, z):
    """The gradient of a bump in z."""
    unit = z / column((belief.alpha**2 + belief.sigma**2).sqrt(), z)
    off = unit - torch.tensor([0.5, 0.3]).to(z)
    height = 2.4 * variance(belief, z).clamp_max(0.3)
    return belief.x - height * off * torch.exp(-2 * off.square().sum(1, keepdim=True))


def narrow(belief, z):
    """The bump at logsnr 0 to 1 alone."""
    logsnr = column(belief.logsnr, z)
    return torch.where((logsnr > 0) & (logsnr < 1), bump(belief, z), belief.x)


def shrink(belief, z):
    return MEAN + 0.9 * (belief.x - MEAN)


FAULTS = {each.__name__: each for each in (gain, level, curl, bump, narrow, shrink)}
