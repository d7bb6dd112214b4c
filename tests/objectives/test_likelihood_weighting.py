"""Likelihood weighting g^2 (2101.09258): the bound and the exact KL of Gaussian models, equality where it must be."""

import math

import numpy as np
import pytest
import torch

from sfumato.exact import GaussianMixture
from sfumato.objectives import Objective, denoising_loss, weights
from sfumato.process import Gaussian
from sfumato.schedules import VE, Flow, LinearBeta, LogLinear, SubVP

F64 = torch.float64
EYE = torch.eye(2, dtype=F64)
MEAN, COV = torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[1.0, 0.3], [0.3, 0.4]], dtype=F64)
MODELS = [(0.0, 1.0), (0.2, 1.3), (-0.7, 0.5), (1.5, 2.0)]  # shift of the mean, factor of the covariance
CURVES = [LinearBeta(), SubVP(), VE(0.01, 20.0), LogLinear(-7.0, 9.0)]


def kl(m, c, n, d):
    """KL(N(m, c) | N(n, d))."""
    gap, inverse = n - m, torch.linalg.inv(d)
    return 0.5 * float(torch.trace(inverse @ c) + gap @ inverse @ gap - len(m) + torch.logdet(d) - torch.logdet(c))


def model(shift, scale):
    """(mean, covariance) of a member of the family; its covariance does not commute with the data's."""
    turned = torch.tensor([[0.1, 0.0], [0.0, 0.4]], dtype=F64)
    return MEAN + shift, scale * COV + (scale - 1) ** 2 * turned


def noised(m, c, alpha, sigma):
    return alpha * m, alpha**2 * c + sigma**2 * EYE


def score_loss(curve, n, d, share=1.0, panels=16):
    """1/2 int g^2 E|s - s_model|^2 dt in closed form at each t, by Gauss's rule; s_model = share * the score of q_t."""
    nodes, rule = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24))
    edges = torch.linspace(0, 1, panels + 1, dtype=F64) ** 2
    t = (edges[:-1, None] + (nodes + 1) * edges.diff()[:, None] / 2).reshape(-1)
    dt = (rule * edges.diff()[:, None] / 2).reshape(-1)
    total = 0.0
    for at, step in zip(t, dt, strict=True):
        alpha, sigma = curve(at)
        (mean, v), (other, w) = noised(MEAN, COV, alpha, sigma), noised(n, d, alpha, sigma)
        inverse, guess = torch.linalg.inv(v), share * torch.linalg.inv(w)
        off = guess @ (mean - other)
        error = torch.trace((inverse - guess) @ v @ (inverse - guess)) + off @ off
        total += 0.5 * float(step * curve.diffusion(at) * error)
    return total


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(("shift", "scale"), MODELS)
def test_the_bound_is_the_exact_kl_of_a_diffused_model(curve, shift, scale):
    """Theorem 2: s_model the score of q_t, started from q_1: KL(p_0 | q_0) = KL(p_1 | q_1) + the loss, to 1e-9."""
    n, d = model(shift, scale)
    start, end = (curve(torch.tensor(t, dtype=F64)) for t in (0.0, 1.0))
    exact = kl(*noised(MEAN, COV, *start), *noised(n, d, *start))
    bound = score_loss(curve, n, d) + kl(*noised(MEAN, COV, *end), *noised(n, d, *end))
    assert bound == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert (exact < 1e-12) == ((shift, scale) == (0.0, 1.0))  # the optimum, where both are 0


@pytest.mark.parametrize(("shift", "scale"), MODELS)
def test_from_the_prior_it_is_a_bound(shift, scale):
    """Theorem 1: started from N(0, 1), the law of the reverse SDE (q's transition from there) is no farther than L."""
    curve, (n, d) = LinearBeta(), model(shift, scale)
    alpha, sigma = curve(1.0)
    mean, cov = noised(n, d, alpha, sigma)
    gain = alpha * d @ torch.linalg.inv(cov)
    law = n - gain @ mean, d - gain @ cov @ gain.T + gain @ gain.T
    prior = kl(*noised(MEAN, COV, alpha, sigma), 0 * n, EYE)
    assert 0 <= kl(MEAN, COV, *law) < score_loss(curve, n, d) + prior


def reverse_law(curve, n, d, share, steps):
    """Mean and covariance at t = 0 of dz = (f z - g^2 s_model) dt + g dw run from N(0, 1) at t = 1, by Runge-Kutta."""

    def rates(t, m, c):
        t = t.clamp_min(0.0)
        f, g2 = curve.drift(t), curve.diffusion(t)
        mean, v = noised(n, d, *curve(t))
        pull = -share * torch.linalg.inv(v)
        drift = f * EYE - g2 * pull
        return drift @ m + g2 * pull @ mean, drift @ c + c @ drift.T - g2 * EYE

    m, c, h = torch.zeros(2, dtype=F64), EYE.clone(), 1 / steps
    for i in range(steps):
        t = torch.tensor(1 - i * h, dtype=F64)
        k = [rates(t, m, c)]
        for part in (0.5, 0.5, 1.0):
            k.append(rates(t - part * h, m - part * h * k[-1][0], c - part * h * k[-1][1]))
        m, c = (
            old - h / 6 * (a + 2 * b + 2 * e + g)
            for old, a, b, e, g in zip((m, c), *k, strict=True)
        )  # fmt: skip
    return m, c


@pytest.mark.parametrize("share", [0.7, 0.9, 1.2])
def test_a_score_that_is_of_no_law_leaves_a_gap(share):
    """s_model = share * score is consistent with no diffused law: KL(p | p_SDE) lies strictly below the bound."""
    curve = LinearBeta(0.1, 12.0)
    law = reverse_law(curve, MEAN, COV, share, steps=400)
    exact = kl(MEAN, COV, *law)
    bound = score_loss(curve, MEAN, COV, share) + kl(*noised(MEAN, COV, *curve(1.0)), 0 * MEAN, EYE)
    assert 1e-3 < exact < bound - 1e-3


def test_the_solver_of_moments_is_right_where_the_law_is_known():
    """The integrator above against q's own transition: a check of the check."""
    curve, (n, d) = LinearBeta(0.1, 12.0), model(0.2, 1.3)
    alpha, sigma = curve(1.0)
    mean, cov = noised(n, d, alpha, sigma)
    gain = alpha * d @ torch.linalg.inv(cov)
    m, c = reverse_law(curve, n, d, 1.0, steps=400)
    torch.testing.assert_close(m, n - gain @ mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(c, d - gain @ cov @ gain.T + gain @ gain.T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("curve", [*CURVES, Flow()], ids=lambda c: type(c).__name__)
def test_g_squared_is_the_weight_one(curve):
    """1/2 g^2 |s - s_hat|^2 dt = 1/2 |eps - eps_hat|^2 dlogsnr: the compiler calls it the evidence bound."""
    found = Objective(curve, "score", factor=lambda lam: curve.diffusion(curve.time(lam)))
    near = found.nearest()
    assert near.name == "elbo" and "likelihood" in near.aliases and near.distance < 1e-9 and found.monotone
    start, stop = (float(curve.time(at)) for at in (found.range[1], found.range[0]))
    assert near.scale == pytest.approx(1 / (stop - start), rel=1e-9)  # the range of t that uniform t is spread over


def test_the_loss_of_a_model_exceeds_its_floor_by_the_kl():
    """`denoising_loss` with the weight likelihood: its mean less the optimum's is KL(p_0|q_0) - KL(p_1|q_1), 4 s.e."""
    curve, (n, d) = LogLinear(-7.0, 9.0), model(0.2, 1.3)
    process, count = Gaussian(curve, "eps"), 20_000

    class Exact:
        def __init__(self, mean, cov):
            self.process, self.law = process, GaussianMixture([1.0], mean[None], cov[None])

        def __call__(self, z, t):
            return process.read(self.law.moments(z, process=process, t=t).eps, z, t)

    x = GaussianMixture([1.0], MEAN[None], COV[None]).sample(count, seed=3)
    losses = [denoising_loss(Exact(m, c), x, weight=weights.likelihood(), seed=4) for m, c in ((n, d), (MEAN, COV))]
    excess = losses[0] - losses[1]
    start, end = curve(0.0), curve(1.0)
    wanted = kl(*noised(MEAN, COV, *start), *noised(n, d, *start)) - kl(*noised(MEAN, COV, *end), *noised(n, d, *end))
    error = float(excess.std()) / math.sqrt(count)
    assert error < 0.2 * wanted and float(excess.mean()) == pytest.approx(wanted, abs=4 * error)
