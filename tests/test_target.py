"""Rows: every target into every other, both ends, loss re-weighting, and EDM's network output."""

import itertools

import pytest
import torch

from curves import CURVES
from loops import every
from sfumato import target
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta

F64 = torch.float64
SIGMA_DATA = 0.7
PAIRS = list(itertools.product(target.NAMES, repeat=2))


def close(a, b, tol):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def truth_of(curve, t, dim=5, seed=0):
    """x, eps (n, dim), and z: any numbers at all, since the maps are linear."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = (torch.randn(len(t), dim, dtype=F64, generator=generator) for _ in range(2))
    alpha, sigma = curve(t)
    return x, eps, alpha[:, None] * x + sigma[:, None] * eps


def value_of(name, curve, t, x, eps):
    a, b = target.row(name, curve, t, SIGMA_DATA)
    return a[:, None] * x + b[:, None] * eps


@every(curve=CURVES, given=target.NAMES)
def test_all_pairs_convert(curve, given):
    """From z and one target to any other: 36 maps, relative to what a rounding of the input may do."""
    t = torch.linspace(0.1, 0.95, 12, dtype=F64)
    x, eps, z = truth_of(curve, t)
    y, row = value_of(given, curve, t, x, eps), target.row(given, curve, t, SIGMA_DATA)
    belief = Estimate(z, t, curve, y=y, row=row, sigma_data=SIGMA_DATA)
    solution = target.solve(row, *curve(t))
    for asked in target.NAMES:
        # what one rounding of z and y becomes in the asked target: the condition of the map
        a, b = target.row(asked, curve, t, SIGMA_DATA)
        gain = (a * solution.xz).abs() + (b * solution.ez).abs() + (a * solution.xy).abs() + (b * solution.ey).abs()
        size = gain * (z.abs().amax(1) + y.abs().amax(1)) + 1
        error = (belief.target(asked) - value_of(asked, curve, t, x, eps)).abs().amax(1)
        assert float((error / size).max()) < 1e-12, asked


def test_pairs_to_1e12_where_both_signals_show():
    """At alpha and sigma of order one the maps are exact to 1e-12 outright."""
    for name in ("linear_beta", "flow", "trig", "log_linear"):
        curve = CURVES[name]
        t = curve.time(torch.linspace(-4, 4, 9, dtype=F64))
        x, eps, z = truth_of(curve, t)
        for given, asked in PAIRS:
            row = target.row(given, curve, t, SIGMA_DATA)
            belief = Estimate(z, t, curve, y=value_of(given, curve, t, x, eps), row=row, sigma_data=SIGMA_DATA)
            close(belief.target(asked), value_of(asked, curve, t, x, eps), 1e-12)


@every(curve=CURVES, name=target.NAMES)
def test_data_end(curve, name):
    """At sigma = 0: x = z/alpha and eps = 0 whatever the network says; elsewhere finite."""
    t = torch.zeros(3, dtype=F64)
    z, y = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    belief = Estimate(z, t, curve, y=y, row=target.row(name, curve, t, SIGMA_DATA), sigma_data=SIGMA_DATA)
    assert bool(belief.x.isfinite().all() and belief.eps.isfinite().all())
    for other in ("v", "F", "x", "eps", "velocity"):
        assert not bool(belief.target(other).isnan().any()), other
    if float(curve.sigma(0.0)) == 0:
        close(belief.x, z / curve.alpha(0.0), 1e-15)
        assert not bool(belief.eps.any())
        with pytest.raises(SfumatoError, match="sigma = 0"):
            _ = belief.score
    else:
        assert bool(belief.score.isfinite().all())


@every(curve=CURVES, name=target.NAMES)
def test_noise_end(curve, name):
    """At alpha = 0: eps = z/sigma, and x from a row that tells it; the rows that do not are refused."""
    if name == "velocity" and not bool(curve.rates(1.0)[0].isfinite()):
        with pytest.raises(SfumatoError, match="infinite at t = 1"):
            target.check(name, curve)
        return
    target_ok = float(curve.alpha(1.0)) > 0 or name not in ("eps", "score")
    t = torch.ones(3, dtype=F64)
    x, eps, z = truth_of(curve, t)
    row = target.row(name, curve, t, SIGMA_DATA)
    belief = Estimate(z, t, curve, y=value_of(name, curve, t, x, eps), row=row, sigma_data=SIGMA_DATA)
    if not target_ok:
        with pytest.raises(SfumatoError, match="zero signal"):
            _ = belief.x
        return
    condition = float((target.solve(row, *curve(t)).xz).abs().max())
    close(belief.x, x, 1e-14 * max(10.0, 10 * condition))
    close(belief.eps, eps, 1e-9)
    if float(curve.alpha(1.0)) == 0:
        close(belief.eps, z / curve.sigma(1.0), 1e-15)


@every(curve=CURVES, name=target.NAMES)
def test_error_scale(curve, name):
    """|deps|^2 = c |dy|^2 and |dx|^2 = (sigma/alpha)^2 |deps|^2 for two beliefs about one z."""
    t = torch.linspace(0.05, 0.95, 10, dtype=F64)
    _, _, z = truth_of(curve, t)
    alpha, sigma = curve(t)
    row = target.row(name, curve, t, SIGMA_DATA)
    first, second = torch.randn(2, 10, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
    one, two = (Estimate(z, t, curve, y=y, row=row, sigma_data=SIGMA_DATA) for y in (first, second))
    deps, dx = ((a - b).square().sum(1) for a, b in ((one.eps, two.eps), (one.x, two.x)))
    dy = (first - second).square().sum(1)
    torch.testing.assert_close(deps, target.error_scale(row, alpha, sigma) * dy, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(dx, (sigma / alpha) ** 2 * deps, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("curve", [Flow(), Cosine()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("name", ["eps", "score"])
def test_targets_without_signal_are_refused_when_built(curve, name):
    with pytest.raises(SfumatoError, match="zero signal.*such as VE"):
        Denoiser(torch.nn.Identity(), Gaussian(curve), target=name)
    Denoiser(torch.nn.Identity(), Gaussian(LinearBeta()), target=name)


def test_unknown_targets_are_refused():
    with pytest.raises(SfumatoError, match="known are x, eps"):
        Denoiser(torch.nn.Identity(), Gaussian(Flow()), target="noise")
    with pytest.raises(SfumatoError, match="known are x, eps"):
        target.row("noise", Flow(), 0.5)
    with pytest.raises(SfumatoError, match="needs a prediction"):
        Estimate(torch.zeros(1, 1), 0.5, Flow())


@pytest.mark.parametrize("curve", [EDM(), VE()], ids=lambda c: type(c).__name__)
def test_F_is_the_network_output_of_edm(curve):
    """D = c_skip z + c_out F, c_skip = sd^2/(sigma^2 + sd^2), c_out = sigma sd/sqrt(sigma^2 + sd^2) (Table 1)."""
    t = torch.linspace(0, 1, 20, dtype=F64)
    _, _, z = truth_of(curve, t)
    sigma, sd = curve.sigma(t)[:, None], 0.5
    F = torch.randn(20, 5, dtype=F64, generator=torch.Generator().manual_seed(2))
    belief = Gaussian(curve, "F", sd).read(F, z, t)
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / torch.sqrt(sigma**2 + sd**2)
    close(belief.x, c_skip * z + c_out * F, 1e-12)
    close(belief.F, F, 1e-9)


@every(curve=CURVES, sigma_data=[0.5, 1.0, 3.0])
def test_edm_on_matched_gaussian_data(curve, sigma_data):
    """Data N(0, sd^2): the optimal F is 0, the input and the target have variance 1, for every schedule (C11)."""
    law, process = GaussianMixture([1.0], [[0.0, 0.0]], sigma_data**2), Gaussian(curve)
    t = torch.linspace(0.02, 1, 15, dtype=F64)
    alpha, sigma = curve(t)
    z = law.sample(15, seed=1, process=process, t=t)
    m = law.moments(z, process=process, t=t)
    a, b = target.row("F", curve, t, sigma_data)
    assert float((a[:, None] * m.x + b[:, None] * m.eps).abs().max()) < 1e-10
    torch.testing.assert_close(a**2 * sigma_data**2 + b**2, torch.ones_like(t), rtol=1e-12, atol=0)  # Var(target)
    seen = {}

    class Recorder(torch.nn.Module):
        def forward(self, x, level):
            seen["x"] = x
            return x

    Denoiser(Recorder(), process, target="F", sigma_data=sigma_data).predict(torch.ones(15, 2, dtype=F64), t)
    variance_z = alpha**2 * sigma_data**2 + sigma**2
    torch.testing.assert_close(seen["x"][:, 0] ** 2 * variance_z, torch.ones_like(t), rtol=1e-12, atol=0)  # Var(c_in z)


def test_edm_weight_makes_the_raw_loss_flat():
    """EDM's weight (sigma^2 + sd^2)/(sigma sd)^2 times c_out^2 is 1: |dF|^2 = weight |dx|^2."""
    curve, t, sd = EDM(), torch.linspace(0, 1, 30, dtype=F64), 0.5
    alpha, sigma = curve(t)
    scale = target.error_scale(target.row("F", curve, t, sd), alpha, sigma)  # |deps|^2 / |dF|^2
    dx_over_dF = (sigma / alpha) ** 2 * scale
    weighted = dx_over_dF * (sigma**2 + sd**2) / (sigma * sd) ** 2
    torch.testing.assert_close(weighted, torch.ones_like(t), rtol=1e-12, atol=0)


def test_one_number_for_time_and_one_for_each_row_agree():
    """An image batch with t a number, (B,) and B equal to the width: never a silent broadcast along the wrong axis."""
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 4, 1, 4, 4, dtype=F64, generator=generator)
    for name in target.NAMES:
        process = Gaussian(LinearBeta(), name)
        one = process.read(y, z, 0.3)
        many = process.read(y, z, torch.full((4,), 0.3, dtype=F64))
        close(one.x, many.x, 0)
        mixed = process.read(y, z, torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=F64))
        close(mixed.x[1], one.x[1], 0)
        close(mixed.x[3], process.read(y, z, 0.9).x[3], 0)
        assert mixed.eps.shape == mixed.v.shape == z.shape


def test_belief_is_linear():
    process, t = Gaussian(Cosine(), "v"), torch.tensor([0.2, 0.6], dtype=F64)
    z, first, second = torch.randn(3, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    one, two = process.read(first, z, t), process.read(second, z, t)
    both = one.lerp(two, 2.5)
    for name in ("x", "eps", "v", "velocity", "F", "score"):
        wanted = getattr(one, name) + 2.5 * (getattr(two, name) - getattr(one, name))
        close(getattr(both, name), wanted, 1e-12)
    close(both.alpha[:, None] * both.x + both.sigma[:, None] * both.eps, z, 1e-12)
    close(one.logsnr, process.schedule.logsnr(t), 0)
