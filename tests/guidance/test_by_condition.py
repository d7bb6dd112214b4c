"""Guidance by each sample's own scale: the model at every scale, in the user's units, and what it is distilled by."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.belief import Estimate
from sfumato.conditions import Conditions, Given, Scalar
from sfumato.data import DataSpec
from sfumato.exact import GaussianMixture
from sfumato.guidance import GuidedByCondition, guide, is_range
from sfumato.objectives.flow_maps import Lagrangian, MapLoss, MeanFlow, Semigroup
from sfumato.objectives.laws import DistributionMatching, ScoreIdentity
from sfumato.process.angles import angle, unit

F64 = torch.float64
TRUTH = GaussianMixture([0.3, 0.3, 0.4], [[-1.0, 0.5], [0.8, 0.0], [0.3, 1.2]], [0.2, 0.1, 0.3])
LABEL = torch.tensor([0, 1, 2, 0, 1, 2])
SCALES = [1.0, 1.5, 2.5, 4.0, 0.0, -1.0]


def test_each_row_is_guided_by_its_own_scale() -> None:
    """In the scale itself and as a declared condition encodes it; 1 where it is absent and outside the interval."""
    model = TRUTH.denoiser(sf.Gaussian("cosine"))
    z = 1.5 * torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.15, 0.9, 6, dtype=F64)
    known = Scalar.fit(torch.tensor([1.0, 4.0]).numpy())
    plain = Given.of(torch.tensor(SCALES, dtype=F64))
    wanted = torch.stack([guide(model, w)(z, t, label=LABEL).x[i] for i, w in enumerate(SCALES)])
    for guided, scale in (
        (GuidedByCondition(model), plain),
        (GuidedByCondition(model, known), known.encode(SCALES, 6)),
    ):
        found = guided(z, t, label=LABEL, guidance_scale=scale).x
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    conditional = model(z, t, label=LABEL).x
    absent = Given(plain.values, torch.zeros(6, dtype=torch.bool)).masked()
    within = GuidedByCondition(model, interval=(50.0, 60.0))  # no level is inside
    for found in (
        GuidedByCondition(model)(z, t, label=LABEL, guidance_scale=absent),
        GuidedByCondition(model)(z, t, label=LABEL),
        within(z, t, label=LABEL, guidance_scale=plain),
    ):
        torch.testing.assert_close(found.x, conditional, rtol=0, atol=1e-12)


class Shifted:
    """N(m, v) with m = MEANS[label], or 0 without one: under guidance by w it is N(w m, v), exactly."""

    means = torch.tensor([[1.0, -0.5], [0.0, 2.0], [-1.5, 0.3]], dtype=F64)
    v = 0.3
    spec, shape = None, (2,)

    def __init__(self, process: sf.Gaussian) -> None:
        self.process = process

    def __call__(self, z: torch.Tensor, t: torch.Tensor, label: Any = None) -> Estimate:
        m = torch.zeros_like(z)
        if label is not None:
            given = Given.of(label)
            m = torch.where(given.present[:, None], self.means[given.values.clamp_min(0)], 0.0)
        alpha, sigma = (c.reshape(-1, 1) for c in self.process.schedule(t))
        x = m + alpha * self.v / (alpha**2 * self.v + sigma**2) * (z - alpha * m)
        return Estimate(z, t, self.process.schedule, x=x)


class ShiftedMap:
    """The exact map of `Shifted` under the scale of each sample."""

    def __init__(self, model: Shifted, off: float = 0.0) -> None:
        self.model, self.process, self.off = model, model.process, off

    def mean(
        self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, label: Any, guidance_scale: Given
    ) -> torch.Tensor:
        m = (guidance_scale.values + self.off)[:, None] * self.model.means[label]
        (a, b), (c, d) = ([k.expand(len(z))[:, None] for k in self.process.schedule(each)] for each in (t, s))
        v = self.model.v
        end = c * m + (z - a * m) * ((c**2 * v + d**2) / (a**2 * v + b**2)).sqrt()
        distance = (angle(self.process, t) - torch.where(s == 0, 0.0, angle(self.process, s))).expand(len(z))[:, None]
        x = m + a * v / (a**2 * v + b**2) * (z - a * m)
        slope = Estimate(z, t, self.process.schedule, x=x).F
        still = distance.abs() < 1e-12
        mean = (unit(self.process, end, s) - unit(self.process, z, t)) / torch.where(still, 1.0, distance)
        return torch.where(still, slope, mean)


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_the_exact_map_at_every_scale_is_the_fixed_point(schedule: str) -> None:
    """And no longer where it hears the scale wrongly."""
    model = Shifted(sf.Gaussian(schedule))
    teacher: Any = GuidedByCondition(model)
    n = 24
    cond = Conditions({"label": torch.arange(n) % 3, "guidance_scale": Given.of(torch.linspace(1, 4, n, dtype=F64))})
    x = (torch.linspace(1, 4, n, dtype=F64)[:, None] * Shifted.means[torch.arange(n) % 3]) + 0.5
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    batch = SimpleNamespace(x=x, cond=cond, index=torch.arange(n), u=u)
    losses: tuple[tuple[MapLoss, float], ...] = (
        (Semigroup(teacher), 1e-12),
        (Semigroup(teacher, "teacher", cut=0.1, steps=8), 1e-8),
        (Lagrangian(teacher), 1e-7),
        (MeanFlow(teacher), 1e-5),
    )
    for loss, tolerance in losses:
        exact: Any = ShiftedMap(model)
        wrong: Any = ShiftedMap(model, 0.3)
        assert float(loss.losses(exact, batch).max()) < tolerance < 1e-3 < float(loss.losses(wrong, batch).mean())
    for kind in (DistributionMatching, ScoreIdentity):  # the player of exact samples is the guided teacher itself
        law = kind(teacher)
        law.fake = lambda z, m, until, **cond: teacher(z, m, **cond)
        law.fake.process = model.process
        assert float(law.losses(exact, batch).abs().max()) < 1e-12


def test_a_teacher_of_a_range_declares_its_scale() -> None:
    spec = DataSpec.fit(sf.data.open({"x": torch.randn(20, 2).numpy(), "label": [i % 2 for i in range(20)]}))
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 8, 1, classes=2)
    model = sf.Denoiser(net, sf.Gaussian("flow"), spec=spec)
    teacher = GuidedByCondition.of_range(model, (1.0, 4.0))
    known = teacher.spec.conditions["guidance_scale"]
    assert set(teacher.spec.conditions) == {"label", "guidance_scale"} and (known.low, known.high) == ((1.0,), (4.0,))
    assert set(spec.conditions) == {"label"}, "the model's own contract is as it was"
    with pytest.raises(sf.SfumatoError, match="does not hear"):
        teacher.encoded_by(spec)
    with pytest.raises(sf.SfumatoError, match="already"):
        GuidedByCondition.of_range(teacher, (1.0, 4.0))
    with pytest.raises(sf.SfumatoError, match="nothing to guide to"):
        GuidedByCondition.of_range(TRUTH.denoiser(sf.Gaussian("flow")), (1.0, 4.0))
    assert is_range((1, 4)) and not is_range(2.5) and not is_range(((0.0, 1.0), (2.0, 3.0))) and not is_range(None)
    for wrong in ((4, 1), (1, 2, 3), (1.0, float("nan"))):
        with pytest.raises(sf.SfumatoError, match="lowest and highest"):
            is_range(wrong)
