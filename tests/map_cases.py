"""The exact flow map of a known law, also as what a network would answer, and batches of its samples."""

from types import SimpleNamespace
from typing import Any

import torch

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.flow_map import FlowMap
from sfumato.process.angles import angle, ended, time, turn, unit

LAW = sf.exact.GaussianMixture(
    [0.3, 0.3, 0.4],
    [[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.2]],
    [[[0.1, 0.05], [0.05, 0.1]], [[0.2, -0.05], [-0.05, 0.05]], [[0.05, 0.0], [0.0, 0.15]]],
)


class ExactMap:
    """The mean of F over a path of an exactly known law."""

    def __init__(self, law: sf.exact.GaussianMixture, process: Any) -> None:
        self.law, self.process = law, process

    def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, **cond: Any) -> torch.Tensor:
        process = self.process
        d = turn(process, t) - ended(process, s)
        d = d.reshape(*d.shape, *[1] * (z.ndim - d.ndim)).expand_as(z)
        still = d.abs() < 1e-12
        end = self.law.flow_between(z, process.schedule(t), process.schedule(s))
        mean = (unit(process, end, s) - unit(process, z, t)) / torch.where(still, 1.0, d)
        return torch.where(still, self.law.denoiser(process)(z, t).F, mean)


class ExactAnswers:
    """The denoiser whose network answers exactly what a map of this form needs."""

    def __init__(self, law: sf.exact.GaussianMixture, process: sf.Gaussian, form: str) -> None:
        self.exact, self.process, self.form = ExactMap(law, process), process, form

    def __call__(self, z: torch.Tensor, t: torch.Tensor, until: torch.Tensor, **cond: Any) -> sf.Estimate:
        s = time(self.process, until.double() / 2)
        answer = self.exact.mean(z, t, s)
        if self.form == "ddim":
            d = (angle(self.process, t) - until.double() / 2)[:, None]
            moved = (d * answer + (1 - d.cos()) * unit(self.process, z, t)) / torch.where(d == 0, 1.0, d.sin())
            answer = torch.where(d.abs() < 1e-6, answer, moved)
        return sf.Estimate(z, t, self.process.schedule, y=answer, sigma_data=self.process.sigma_data, named="F")


def exact_map(law: sf.exact.GaussianMixture, process: sf.Gaussian, form: str) -> FlowMap:
    """The exact map of a law as a `FlowMap`."""
    inner: Any = ExactAnswers(law, process, form)
    return FlowMap(inner, form=form)


def batch(law: sf.exact.GaussianMixture, count: int, seed: int = 0) -> SimpleNamespace:
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return SimpleNamespace(x=law.sample(count, seed), cond=Conditions({}), index=torch.arange(count), u=u)
