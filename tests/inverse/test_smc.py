"""Particles: their law is the posterior, their mean weight p(y), also where the operator is not linear; calibration."""

import math

import pytest
import torch

import sfumato as sf
from measured_laws import PROCESS, mixture, mixture_posterior
from sfumato.inverse import rank_statistics, uniformity


def test_particles_have_the_law_of_the_posterior_of_a_mixture():
    truth, s = mixture(), 0.3
    A = torch.randn(3, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / math.sqrt(8)
    y = truth.sample(1, 102)[0] @ A.T
    law, evidence = mixture_posterior(truth, A, y, s)
    found = sf.posterior(truth.denoiser(PROCESS), y, sf.operators.Linear(A), s, n=1024, particles=1024, batch=1024)
    assert found.method == "SMC(twist='mmps')"
    shares = law.responsibilities(found.samples.double()).mean(0)
    assert float((shares - law.weights).abs().sum() / 2) < 0.04
    exact = law.sample(20000, 1)
    spread = exact.std(0)
    assert float(((found.mean - exact.mean(0)) / spread).abs().max()) < 0.15
    assert float((found.std / spread - 1).abs().max()) < 0.15
    assert found.log_evidence == pytest.approx(evidence, abs=0.15)
    assert 0.01 < found.error < 0.15
    assert 256 < found.effective <= 1024 and 100 < found.ancestors <= 1024


def test_the_error_of_the_evidence_is_its_spread_over_seeds():
    truth = mixture(2, 3)
    A, y = torch.tensor([[1.0, 0.4]], dtype=torch.float64), torch.tensor([0.6])
    model, operator = truth.denoiser(PROCESS), sf.operators.Linear(A)
    found = [sf.posterior(model, y, operator, 0.1, "smc", 8, 20, 128, seed=seed) for seed in range(24)]
    spread = float(torch.tensor([each.log_evidence for each in found]).std())
    mean_error = sum(each.error for each in found) / len(found)
    assert 0.5 < mean_error / spread < 2


@pytest.mark.parametrize("twist", ["mmps", "pigdm"])
def test_a_square_of_a_mixture_against_quadrature(twist):
    """y = x^2 + s n has two modes, whose weights the prior decides."""
    truth = sf.exact.GaussianMixture([0.7, 0.3], [[1.0], [-1.2]], [0.15, 0.1])
    y, s = 1.2, 0.15
    found = sf.posterior(
        truth.denoiser(PROCESS), torch.tensor([y]), sf.operators.Map(lambda x: x**2), s, f"smc(twist={twist})", 2000,
        particles=2000, batch=2000,
    )  # fmt: skip
    x = torch.linspace(-4, 4, 16001, dtype=torch.float64)
    log = truth.log_prob(x[:, None]) - 0.5 * ((y - x**2) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
    evidence = float((log.exp() * (x[1] - x[0])).sum().log())
    p = log.softmax(0)
    right, samples = x > 0, found.samples[:, 0].double()
    assert float((samples > 0).double().mean()) == pytest.approx(float(p[right].sum()), abs=0.04)
    for side, mine in ((right, samples > 0), (~right, samples < 0)):
        mean = float((p * x)[side].sum() / p[side].sum())
        assert float(samples[mine].mean()) == pytest.approx(mean, abs=0.02)
    assert found.log_evidence == pytest.approx(evidence, abs=0.1)


def test_the_size_of_batches_changes_nothing():
    truth, y = mixture(), torch.zeros(2)
    operator = sf.operators.Linear(torch.eye(8)[:2])
    one, other = (
        sf.posterior(truth.denoiser(PROCESS), y, operator, 0.2, "smc", 6, 6, 24, batch=batch) for batch in (24, 7)
    )
    assert torch.allclose(one.samples, other.samples, atol=1e-6)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-6)


def test_ranks_are_uniform_where_the_posterior_is_right_and_only_there():
    truth = sf.exact.GaussianMixture([1.0], torch.zeros(1, 2), [[[1.0, 0.6], [0.6, 0.8]]])
    operator, x = sf.operators.Linear(torch.tensor([[1.0, 0.3]])), truth.sample(64, 1)
    model, how = (
        truth.denoiser(PROCESS),
        {"steps": 16, "solver": "multistep", "statistic": lambda x: torch.cat((x, operator(x)), 1)},
    )
    right = uniformity(rank_statistics(model, x, operator, 0.3, "mmps(iterations=2)", **how), 31)
    assert right.shape == (3,) and float(right.min()) > 0.01
    narrow = uniformity(rank_statistics(model, x, operator, 0.3, "ddnm", **how), 31)
    assert float(narrow[2]) < 1e-6  # every sample has the measurement, noise and all
    with pytest.raises(sf.SfumatoError, match="draw n = 8 k - 1"):
        uniformity(torch.zeros(4, 1), 30)
