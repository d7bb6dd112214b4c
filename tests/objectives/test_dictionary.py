"""Weights and time densities: the dictionary from a trainer's loss to w(logsnr), and laws that are laws."""

import math

import pytest
import torch
from scipy import integrate

from loops import every
from sfumato import target
from sfumato.objectives import times, weights
from sfumato.schedules import EDM, VE, Cauchy, Cosine, Flow, Laplace, LinearBeta, LogLinear

F64 = torch.float64
LAM = torch.linspace(-8, 8, 33, dtype=F64)


def effective(name, curve, density, sigma_data=1.0):
    """w(logsnr) of the plain squared error of a target: p(logsnr) |dy|^2/|deps|^2, up to the truncation of p."""
    t = curve.time(LAM)
    return density.density(LAM, curve) / target.error_scale(target.row(name, curve, t, sigma_data), *curve(t))


def normal(lam, mean, std):
    return torch.exp(-((lam - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


UNIFORM = times.uniform()


@pytest.mark.parametrize(
    ("name", "curve", "density", "wanted", "constant"),
    [
        ("eps", Cosine(0.0), UNIFORM, weights.eps_simple(), 1 / (2 * math.pi)),
        ("x", Cosine(0.0), UNIFORM, weights.x_simple(), 1 / (2 * math.pi)),
        ("v", Cosine(0.0), UNIFORM, weights.v(), 1 / math.pi),
        ("velocity", Flow(), UNIFORM, weights.flow(), 1 / 2),
        ("x", Flow(), UNIFORM, lambda lam: torch.exp(-lam) / torch.cosh(lam / 4) ** 2, 1 / 8),  # InDI
        ("eps", VE(0.001, 1000.0), UNIFORM, weights.elbo(), 1 / (4 * math.log(1000.0))),
        (
            "velocity", Flow(), times.logit_normal(0.4, 0.9),
            lambda lam: normal(lam, -0.8, 1.8) * (1 + torch.exp(-lam / 2)) ** 2, 1.0,
        ),  # SD3
        ("F", EDM(1e-5, 1e5), times.edm(), weights.edm(0.5), 1.0),
        ("F", Flow(), times.edm(), weights.edm(0.5), 1.0),
    ],
)  # fmt: skip
def test_what_a_plain_loss_weighs(name, curve, density, wanted, constant):
    """METHODS' dictionary with its constants: cut at logsnr +-15 a uniform t loses at most 4e-4 of its range."""
    w = effective(name, curve, density, sigma_data=0.5 if name == "F" else 1.0)
    torch.testing.assert_close(w, constant * wanted(LAM), rtol=2e-3, atol=0)
    ratio = w / wanted(LAM)
    assert float(ratio.max() / ratio.min() - 1) < 1e-9  # the shape is exact


@pytest.mark.parametrize(
    ("weight", "falls"),
    [
        (weights.elbo(), True),
        (weights.eps_simple(), False),
        (weights.v(), True),
        (weights.x_simple(), True),
        (weights.edm(), False),
        (weights.sigmoid(-1.0), True),
        (weights.likelihood(), True),
        (weights.ncsn(), True),
        (weights.flow(), True),
        (weights.indi(), True),
        (weights.p2(1.0), False),
        (weights.p2(0.5, 2.0), False),
        (weights.min_snr(), False),
        (weights.soft_min_snr(), False),
        (weights.truncated_snr(), True),
        (weights.sd3_logit_normal(), False),
        (weights.sd3_mode(), False),
        (weights.sd3_mode(0.3), True),
        (weights.sd3_cosmap(), True),
    ],
)
def test_which_weights_are_an_elbo_with_augmentation(weight, falls):
    """Non-increasing in logsnr, or not (2303.00848, Theorem 1)."""
    w = weight(torch.linspace(-12, 12, 999, dtype=F64))
    assert bool((w > 0).all()) and bool((w[1:] <= w[:-1]).all()) == falls


DENSITIES = [
    times.uniform(), times.uniform_logsnr(), times.logit_normal(-0.5, 1.0), times.edm(), times.mode(), times.mode(-0.8),
    times.cosmap(),
]  # fmt: skip
CURVES = [LinearBeta(), Cosine(), Flow(), VE(), EDM(), Laplace(), Cauchy(), LogLinear(-3.0, 5.0)]


@every(density=DENSITIES, curve=CURVES)
def test_quantile_and_density_are_one_law(density, curve):
    """u is the mass above logsnr(u), which stays inside the range: int_lam(u)^hi p = u."""
    lo, hi = (max(-15.0, min(15.0, end)) for end in curve.logsnr_range)
    u = torch.tensor([1e-9, 0.1, 0.35, 0.5, 0.8, 0.99, 1 - 1e-9], dtype=F64)
    lam = density.logsnr(u, curve)
    assert bool((lam[1:] < lam[:-1]).all()) and lo - 1e-9 <= float(lam.min()) and float(lam.max()) <= hi + 1e-9

    def p(x):
        return float(density.density(torch.tensor([x], dtype=F64), curve))

    ends = [hi, *lam[1:-1].tolist(), lo]
    masses = [integrate.quad(p, b, a, epsabs=1e-9, limit=200)[0] for a, b in zip(ends, ends[1:], strict=False)]
    steps = torch.tensor([0.1, 0.25, 0.15, 0.3, 0.19, 0.01], dtype=F64)
    torch.testing.assert_close(torch.tensor(masses, dtype=F64), steps, rtol=1e-4, atol=1e-6)
