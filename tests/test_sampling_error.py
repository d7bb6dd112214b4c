"""The error budget of a sampler: closed form on Gaussians, sums, sources one by one."""

import math

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.exact import GaussianField, GaussianMixture
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.sampling_error import SOURCES, error_budget
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DDIM, DDPM, Adaptive, Heun, Multistep

F64 = torch.float64
COV = [[0.5, 0.3], [0.3, 0.4]]


def law(mean=(0.6, -0.3), cov=COV):
    return GaussianMixture([1.0], [list(mean)], [cov])


def wasserstein(mean, cov, other_mean, other_cov):
    """W2 of two Gaussians (1803.00567, Eq. 2.41)."""

    def root(c):
        values, vectors = torch.linalg.eigh(c)
        return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T

    half = root(cov)
    cross = root(half @ other_cov @ half)
    return math.sqrt(float((mean - other_mean).square().sum() + torch.trace(cov + other_cov - 2 * cross)))


def output_law(model, solver, steps, scale):
    """Mean and covariance of a linear sampler's output by its affine map."""
    states = torch.cat((torch.zeros(1, 2, dtype=F64), scale * torch.eye(2, dtype=F64)))
    out = sample(model, steps=steps, solver=solver, z=states)
    a = (out[1:] - out[0]).T
    return out[0], a @ a.T


CASES = {
    "vp ddim": (LinearBeta(), DDIM(), 25),
    "edm heun": (EDM(0.02, 12.0), Heun(), 12),
    "ve multistep": (VE(0.05, 8.0), Multistep(3), 15),
    "flow ddim": (Flow(), DDIM(), 30),
}


@pytest.mark.parametrize("case", CASES)
def test_total_is_the_wasserstein_distance_of_the_output(case):
    schedule, solver, steps = CASES[case]
    truth, process = law(), Gaussian(schedule)
    model = truth.denoiser(process)
    found = error_budget(model, steps=steps, solver=solver)
    mean, cov = output_law(model, solver, steps, float(schedule.sigma(1.0)))
    assert found.points == 0
    assert found.total == pytest.approx(wasserstein(mean, cov, truth.mean, truth.covs[0]), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_it_adds_up_within_five_percent(case):
    """With a wrong model as well: of a Gaussian that is 3 % off in mean and covariance."""
    schedule, solver, steps = CASES[case]
    process, truth = Gaussian(schedule), law()
    wrong = law((0.615, -0.29), [[0.515, 0.3], [0.3, 0.39]])
    for model in (truth.denoiser(process), wrong.denoiser(process)):
        found = error_budget(model, truth, steps, solver)
        assert abs(math.fsum(found.shares.values()) - found.total) < 0.05 * found.total
        assert found.interaction == pytest.approx(found.total - math.fsum(found.shares.values()))
        assert (found.alone["score"] == 0) == (model.truth is truth)
        assert all(abs(found.shares[name]) <= found.alone[name] * (1 + 1e-9) for name in SOURCES)


def test_each_source_alone_in_closed_form():
    """Initialisation: m and sd are too small by what the prior lacks. Score: the laws' W2. Truncation: the noise."""
    truth, wrong = law(), law((0.7, -0.3))
    process = Gaussian(VE(1e-4, 8.0))
    found = error_budget(wrong.denoiser(process), truth, 400, Multistep(3))
    values, vectors = torch.linalg.eigh(truth.covs[0])
    # z_1 = 8 xi is z* - m at data coordinates, in a direction of variance c: the flow multiplies by sqrt(c / (c + 64))
    gap = values.sqrt() * (8 / (values + 64).sqrt() - 1)
    start = (values / (values + 64)).sqrt() * (vectors.T @ truth.mean)
    assert found.alone["initialisation"] == pytest.approx(float((gap.square() + start.square()).sum().sqrt()), rel=1e-6)
    moved = (wrong.mean - truth.mean) - vectors @ (
        (values / (values + 64)).sqrt() * (vectors.T @ (wrong.mean - truth.mean))
    )
    assert found.alone["score"] == pytest.approx(float(moved.norm()), rel=1e-4)
    assert found.alone["truncation"] < 1e-4 and found.alone["discretisation"] < 2e-3
    stopped = error_budget(truth.denoiser(Gaussian(Flow())), steps=10, solver=DDIM(), t_stop=0.1)
    wider = (values + (0.1 / 0.9) ** 2).sqrt() - values.sqrt()
    assert stopped.alone["truncation"] == pytest.approx(float(wider.norm()), rel=1e-8)
    assert stopped.alone["initialisation"] < 1e-12


def test_fields_and_mixtures():
    field = GaussianField((1, 4, 4), power=2.0, std=0.7)
    found = error_budget(field.denoiser(Gaussian(Cosine())), steps=20, solver=Heun())
    assert found.points == 0 and found.total == pytest.approx(found.alone["discretisation"], rel=1e-6)
    mixture = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])
    model = mixture.denoiser(Gaussian(EDM(0.002, 20.0)))
    coarse, fine = (error_budget(model, steps=n, solver=Heun(), n=100) for n in (20, 60))
    assert coarse.points == 100
    assert abs(coarse.interaction) < 0.1 * coarse.total
    assert fine.alone["discretisation"] < coarse.alone["discretisation"] / 4
    assert fine.alone["initialisation"] == pytest.approx(coarse.alone["initialisation"], rel=1e-9)
    one = error_budget(model, steps=20, solver=Heun(), n=20, label=1)
    assert one.total > 0
    adaptive = error_budget(model, steps=1, solver=Adaptive(), n=20) if pytest.importorskip("torchdiffeq") else None
    assert adaptive.alone["discretisation"] < 1e-2


def test_it_prints_and_refuses():
    model = law().denoiser(Gaussian(Flow()))
    text = str(error_budget(model, steps=10))
    assert all(name in text for name in (*SOURCES, "interaction", "closed form"))
    with pytest.raises(SfumatoError, match="is stochastic"):
        error_budget(model, steps=10, solver=DDPM())

    class Other:
        process = model.process

        def __call__(self, z, t, **cond):
            return model(z, t, **cond)

    with pytest.raises(SfumatoError, match="truth"):
        error_budget(Other(), steps=10)
