"""Tilted laws by particles: Gaussians and a mixture whose tilted laws are known, with log Z and its error."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.metrics.transport import SlicedWasserstein
from sfumato.process import Gaussian, Masked
from sfumato.schedules import VE, Cosine, Flow

F64 = torch.float64
GRID = torch.linspace(-12, 12, 40001, dtype=F64)


class Pair:
    """N(1, 0.3) with a label, N(0, 1) without."""

    def __init__(self, process):
        self.process, self.shape = process, (1,)
        self.laws = [GaussianMixture([1.0], [[m]], v) for m, v in ((1.0, 0.3), (0.0, 1.0))]

    def __call__(self, z, t, label=None):
        c, u = (law.moments(z, process=self.process, t=t).x for law in self.laws)
        told = torch.zeros(len(z), dtype=torch.bool) if label is None else label >= 0
        return Estimate(z, t, self.process.schedule, x=torch.where(told[:, None], c, u))


def exact(terms):
    """(mean, variance, log Z) of prod_i N(m_i, v_i)^(g_i), by its values on a line."""
    log = sum(g * (-((GRID - m) ** 2) / (2 * v) - 0.5 * math.log(2 * math.pi * v)) for m, v, g in terms)
    w = log.softmax(0)
    mean = float(w @ GRID)
    return mean, float(w @ (GRID - mean) ** 2), float(log.logsumexp(0)) + math.log(float(GRID[1] - GRID[0]))


def within_chance(found, wanted, independent=1000):
    """Of 4,096 particles, of which copies make about 1,000 independent ones."""
    mean, variance, log_z = wanted
    x = found.x.double()
    assert float(x.mean()) == pytest.approx(mean, abs=3.5 * math.sqrt(variance / independent))
    assert float(x.var()) == pytest.approx(variance, rel=3.5 * math.sqrt(2 / independent))
    assert found.log_z.value == pytest.approx(log_z, abs=3.5 * found.log_z.stderr + 0.01)


@pytest.mark.parametrize("curve", [Cosine(), Flow(), VE()], ids=lambda c: type(c).__name__)
def test_guidance_as_it_is_meant_within_chance_at_4096_particles(curve):
    """The tilted law's variance 0.125, where the ODE samples 0.027 and DDPM 0.086; under three schedules."""
    model = Pair(Gaussian(curve))
    found = sf.tilt([(model, {"label": 0}, 3.0), (model, {}, -2.0)]).sample(4096, particles=4096, steps=100, seed=1)
    wanted = exact([(1.0, 0.3, 3.0), (0.0, 1.0, -2.0)])
    assert wanted[:2] == pytest.approx((1.25, 0.125), rel=1e-3)
    within_chance(found, wanted)
    assert found.ess.shape == (100,) and 0.2 < float(found.ess.min()) < 0.6 and found.resampled >= 1
    assert 0 < found.log_z.stderr < 0.2 and found.log_z.low < found.log_z.value < found.log_z.high


def test_a_corrector_moves_copies_apart_and_keeps_the_law():
    model = Pair(Gaussian(Cosine()))
    law = sf.tilt([(model, {"label": 0}, 3.0), (model, {}, -2.0)])
    found = law.sample(4096, particles=4096, steps=600, seed=1, correct=1)
    within_chance(found, exact([(1.0, 0.3, 3.0), (0.0, 1.0, -2.0)]))
    assert len(found.x.unique()) > 0.8 * 4096


def test_products_of_models_and_powers():
    """Two models, whose exponents sum to 2; and p^0.7, by each particle as often as it weighs."""
    process = Gaussian(Cosine())
    a, b = (GaussianMixture([1.0], [[m]], v).denoiser(process) for m, v in ((0.8, 0.5), (-0.4, 0.8)))
    found = sf.tilt([(a, None, 1.0), (b, {}, 1.0)]).sample(4096, particles=4096, steps=200)
    within_chance(found, exact([(0.8, 0.5, 1.0), (-0.4, 0.8, 1.0)]), 300)
    found = sf.tilt([(a, {}, 0.7)]).sample(4096, particles=4096, steps=150)
    within_chance(found, exact([(0.8, 0.5, 0.7)]), 300)


def tilted(truth, scale, n, seed):
    """n points of p_1^g p^(1-g) in the plane, from its values on a grid."""
    axis = torch.linspace(-4, 4, 601, dtype=F64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log = scale * truth.log_prob(points, label=1) + (1 - scale) * truth.log_prob(points)
    draw = torch.Generator().manual_seed(seed)
    rows = points[torch.multinomial(log.softmax(0), n, True, generator=draw)]
    return rows + (torch.rand(n, 2, generator=draw, dtype=F64) - 0.5) * float(axis[1] - axis[0])


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "most"), [(2.0, 1.4), (4.0, 2.0)])
def test_a_mixture_comes_to_the_floor_that_guidance_misses(scale, most):
    """Sliced W2 of 1,000 samples to the tilted law, beside that of other 1,000 of its own."""
    means = [[-1.2, 0.0], [0.0, 1.2], [1.2, 0.0], [0.0, -1.2]]
    truth = GaussianMixture([0.25] * 4, means, 0.15, labels=[0, 0, 1, 1])
    model, distance = truth.denoiser(Gaussian(Cosine())), SlicedWasserstein()
    real = tilted(truth, scale, 1000, 0)
    floor = sum(distance(tilted(truth, scale, 1000, seed), real).value for seed in range(1, 9)) / 8
    found = sf.tilt([(model, {"label": 1}, scale), (model, {}, 1 - scale)]).sample(1000, particles=8192, steps=200)
    guided = sf.sample(sf.guide(model, scale), 1000, 100, label=1, batch=1000)
    assert distance(found.x, real).value < most * floor < 2.5 * floor < distance(guided, real).value


def test_samples_are_of_their_number_and_in_user_units():
    """Groups are independent of each other; a group is the same in any number of them; log Z pools them."""
    model = Pair(Gaussian(Cosine()))
    law = sf.tilt([(model, {"label": 0}, 2.0), (model, {}, -1.0)])
    many, few = (law.sample(n, particles=64, steps=20, seed=3) for n in (150, 64))
    assert many.x.shape == (150, 1) and torch.equal(many.x[:64], few.x)
    assert many.log_z.stderr < few.log_z.stderr
    assert "log Z" in str(many)


def test_one_term_is_plain_sampling_without_weights():
    model = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], 0.1).denoiser(Gaussian(Cosine()))
    found = sf.tilt([(model, {"label": 1}, 1.0)]).sample(500, particles=500, steps=60)
    assert float(found.ess.min()) == pytest.approx(1.0) and found.resampled == 0
    assert found.log_z.value == pytest.approx(0.0, abs=1e-9)
    assert float((found.x.mean(0) - torch.tensor([1.0, 0.5])).abs().max()) < 0.06


def test_mistakes():
    model = Pair(Gaussian(Cosine()))
    with pytest.raises(SfumatoError, match="sum above 0"):
        sf.tilt([(model, {"label": 0}, 1.0), (model, {}, -1.0)])
    with pytest.raises(SfumatoError, match="terms"):
        sf.tilt([])
    with pytest.raises(SfumatoError, match="schedule"):
        sf.tilt([(model, {}, 1.0), (Pair(Gaussian(Flow())), {}, 1.0)])
    with pytest.raises(SfumatoError, match="Gaussian process"):
        sf.tilt([(sf.exact.Table(torch.ones(3, 3, dtype=F64)).denoiser(Masked(Flow(), 3)), {}, 1.0)])
