"""Schedules against automatic differentiation, bisection, quadrature, the forward SDE and published values."""

import json
import math

import pytest
import torch
from scipy import integrate, stats

from curves import CURVES
from loops import every
from sfumato.errors import SfumatoError
from sfumato.schedules import (
    EDM,
    VE,
    Cauchy,
    Cosine,
    Flow,
    FromBetas,
    FromFunction,
    Laplace,
    LinearBeta,
    LogLinear,
    Shifted,
    Sigmoid,
    SubVP,
    Trig,
    from_config,
)

F64 = torch.float64
INNER = torch.linspace(0.013, 0.987, 61, dtype=F64)  # between the entries of the tables, where they have a slope
UNIT = torch.linspace(0, 1, 257, dtype=F64)


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=tol, atol=tol)


def slope(function, t):
    """d function/dt by automatic differentiation."""
    leaf = t.clone().requires_grad_()
    value = function(leaf)
    return torch.autograd.grad(value.sum(), leaf)[0] if value.requires_grad else torch.zeros_like(t)


@every(curve=CURVES)
def test_closed_forms_are_the_derivatives(curve):
    alpha, sigma = curve(INNER)
    da, ds = curve.rates(INNER)
    close(da, slope(curve.alpha, INNER), 1e-9)
    torch.testing.assert_close(ds, slope(curve.sigma, INNER), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(curve.dlogsnr(INNER), slope(curve.logsnr, INNER), rtol=1e-8, atol=1e-9)
    f = slope(lambda t: curve.alpha(t).log(), INNER)
    close(curve.drift(INNER), f, 1e-9)
    g2 = slope(lambda t: curve.sigma(t) ** 2, INNER) - 2 * f * sigma**2
    torch.testing.assert_close(curve.diffusion(INNER), g2, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(curve.diffusion(INNER), -(sigma**2) * slope(curve.logsnr, INNER), rtol=1e-8, atol=1e-10)
    assert bool((curve.diffusion(INNER) >= 0).all())


@every(curve=CURVES)
def test_time_is_the_inverse_of_logsnr(curve):
    t = torch.cat((UNIT, torch.tensor([1e-9, 1e-6, 1e-4, 1 - 1e-4, 1 - 1e-6, 1 - 1e-9], dtype=F64)))
    assert float((curve.time(curve.logsnr(t)) - t).abs().max()) <= 1e-9
    lo, hi = curve.logsnr_range
    assert float(curve.time(hi)) == pytest.approx(0.0, abs=1e-12)
    assert float(curve.time(lo)) == pytest.approx(1.0, abs=1e-12)
    assert float(curve.time(math.inf)) == pytest.approx(0.0, abs=1e-12)
    assert float(curve.time(-math.inf)) == pytest.approx(1.0, abs=1e-12)


@every(curve=CURVES)
def test_logsnr_is_the_inverse_of_time(curve):
    lo, hi = (max(-20.0, min(20.0, end)) for end in curve.logsnr_range)
    lam = torch.linspace(lo, hi, 999, dtype=F64)
    close(curve.logsnr(curve.time(lam)), lam, 1e-7)


@every(curve=CURVES)
def test_times_beyond_the_ends_are_the_ends(curve):
    lo, hi = curve.logsnr_range
    beyond = torch.tensor([-math.inf, -1e4, lo - 1, hi + 1, 1e4, math.inf], dtype=F64)
    close(curve.time(beyond), torch.tensor([1.0, 1, 1, 0, 0, 0]), 1e-9)


@every(curve=CURVES)
def test_bisection_finds_the_same_times(curve):
    blind = FromFunction(curve.curve)
    close(blind.time(curve.logsnr(INNER)), INNER, 1e-12)
    # floor() of a table has its derivative taken inside a segment
    for closed, automatic in zip(curve.rates(INNER), blind.rates(INNER), strict=True):
        torch.testing.assert_close(closed, automatic, rtol=1e-9, atol=1e-9)


@every(curve=CURVES)
def test_ends_are_handled(curve):
    alpha, sigma = curve(UNIT)
    lam = curve.logsnr(UNIT)
    assert bool(alpha.isfinite().all() and sigma.isfinite().all())
    assert bool((alpha[:-1] > 0).all() and (sigma[1:] > 0).all())
    assert not bool(lam.isnan().any()) and bool((lam[1:] < lam[:-1]).all())
    assert bool(lam[1:-1].isfinite().all())
    assert not bool(curve.dlogsnr(UNIT).isnan().any())
    # the state at the data end is the data: at most a thousandth of it is noise, or the schedule says so itself
    assert float(alpha[0]) == pytest.approx(1.0, abs=0.01)
    assert curve.logsnr_range == (float(lam[-1]), float(lam[0]))


@every(curve=CURVES)
def test_numbers_tensors_and_shapes(curve):
    alpha, sigma = curve(0.3)
    assert alpha.shape == () and alpha.dtype == F64 and sigma.dtype == F64
    grid = torch.tensor([[0.3, 0.5, 0.7], [0.1, 0.2, 0.9]])  # float32 in, float64 out
    assert curve(grid)[0].shape == (2, 3) and curve.logsnr(grid).dtype == F64
    assert curve.time(curve.logsnr(grid)).shape == (2, 3)
    close(curve.logsnr(grid)[0, 1], curve.logsnr(0.5), 1e-12)
    assert [r.shape for r in curve.rates(grid)] == [grid.shape] * 2 and curve.dlogsnr(grid).shape == grid.shape


@every(curve=CURVES)
def test_config_round_trip(curve):
    again = from_config(json.loads(json.dumps(curve.config())))
    assert again == curve and hash(again) == hash(curve)
    assert torch.equal(again.logsnr(UNIT), curve.logsnr(UNIT))


@pytest.mark.parametrize(
    "curve",
    [LinearBeta(), Cosine(), Cosine(0.0), Trig(), LogLinear(), Laplace(), Cauchy(), Sigmoid(), Shifted(Cosine(), 2.0),
     FromBetas.ddpm()],
    ids=lambda c: type(c).__name__,
)  # fmt: skip
def test_variance_is_preserved(curve):
    alpha, sigma = curve(UNIT)
    close(alpha**2 + sigma**2, torch.ones_like(UNIT), 1e-14)


def test_definitions():
    """The curves of the papers, each by its own formula."""
    t = INNER
    close(VE(0.01, 50.0).sigma(t), 0.01 * (50.0 / 0.01) ** t, 1e-13)
    close(Flow().sigma(t), t, 0)
    close(Flow().alpha(t), 1 - t, 0)
    close(Trig().alpha(t), torch.cos(math.pi * t / 2), 1e-15)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    close(LinearBeta().alpha(t), torch.exp(-integral / 2), 1e-14)
    close(SubVP().sigma(t), 1 - SubVP().alpha(t) ** 2, 1e-14)
    close(LinearBeta().diffusion(t), 0.1 + 19.9 * t, 1e-12)  # g^2 = beta
    close(LinearBeta().drift(t), -(0.1 + 19.9 * t) / 2, 1e-12)
    close(SubVP().diffusion(t), (0.1 + 19.9 * t) * (1 - torch.exp(-2 * integral)), 1e-12)

    def bar(t):
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    close(Cosine().alpha(t) ** 2, bar(t) / bar(torch.zeros((), dtype=F64)), 1e-14)
    close(LogLinear(-9.0, 7.0).logsnr(t), 7.0 - 16.0 * t, 1e-12)
    p = torch.sigmoid(t * 6 - 3)
    ends = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=F64))
    close(Sigmoid().alpha(t) ** 2, (ends[1] - p) / (ends[1] - ends[0]), 1e-14)
    # Karras' nodes with i from the noise end, Eq. 5
    n = 18
    i = torch.arange(n, dtype=F64)
    nodes = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    close(EDM().sigma(1 - i / (n - 1)), nodes, 1e-12)


def test_published_signal_to_noise_of_the_tables():
    """SNR at the last step: 4.0e-5 for DDPM, 4.7e-3 for latent diffusion (Lin et al. 2023, 2305.08891, Table 1)."""
    assert math.exp(float(FromBetas.ddpm().logsnr(1.0))) == pytest.approx(4.0e-5, rel=0.02)
    assert math.exp(float(FromBetas.scaled_linear().logsnr(1.0))) == pytest.approx(4.7e-3, rel=0.02)


def test_table_sits_at_its_products():
    """alpha_bar_i = prod (1 - beta_j) at t = i/N, exactly."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    t = torch.arange(1, 1001, dtype=F64) / 1000
    close(FromBetas.ddpm().alpha(t) ** 2, torch.cumprod(1 - betas, 0), 1e-12)


def test_table_tends_to_linear_beta():
    """beta_i = beta(i/N)/N: DDPM's table approaches the continuous curve like 1/N."""
    t, gaps = torch.linspace(0.05, 1, 20, dtype=F64), []
    for n in (500, 1000, 2000, 4000):
        table = FromBetas.ddpm(n, 0.1 / n, 20.0 / n)
        gaps.append(float((table.logsnr(t) - LinearBeta().logsnr(t)).abs().max()))
    rates = [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)]
    assert all(0.9 < rate < 1.1 for rate in rates), (gaps, rates)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_sub_vp_variance_by_quadrature(t):
    """sigma^2 = int_0^t g^2(s) (alpha_t / alpha_s)^2 ds = (1 - exp(-B))^2 for g^2 = beta (1 - exp(-2B))."""

    def b(s):
        return 0.1 * s + 0.5 * 19.9 * s * s

    def integrand(s):
        return math.exp(-(b(t) - b(s))) * (0.1 + 19.9 * s) * (1 - math.exp(-2 * b(s)))

    variance, _ = integrate.quad(integrand, 0, t, epsabs=1e-13, epsrel=1e-13)
    assert float(SubVP().sigma(t)) ** 2 == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("name", ["linear_beta", "subvp", "ve", "cosine", "edm", "sigmoid", "ddpm_table"])
def test_euler_maruyama_has_the_moments_of_the_curve(name):
    """z += f z dt + g dw from t0: mean factor alpha_t/alpha_0 and variance sigma_t^2, both with error O(dt)."""
    curve, start, stop = CURVES[name], 0.05, 0.9
    errors = []
    for n in (400, 800, 1600):
        t = torch.linspace(start, stop, n + 1, dtype=F64)
        h, f, g2 = (stop - start) / n, curve.drift(t[:-1]), curve.diffusion(t[:-1])
        mean, variance = float(curve.alpha(start)), float(curve.sigma(start)) ** 2
        for fk, gk in zip(f.tolist(), g2.tolist(), strict=True):
            mean, variance = mean * (1 + fk * h), variance * (1 + fk * h) ** 2 + gk * h
        alpha, sigma = (float(v) for v in curve(stop))
        errors.append(max(abs(mean / alpha - 1), abs(variance / sigma**2 - 1)))
    assert errors[-1] < 0.02
    assert 0.85 < math.log2(errors[1] / errors[2]) < 1.15, errors


def test_euler_maruyama_paths():
    """The same with drawn paths: the law at t is N(alpha x, sigma^2)."""
    curve, n, paths, x = LinearBeta(), 500, 20_000, 2.0
    generator = torch.Generator().manual_seed(0)
    z = torch.full((paths,), x, dtype=F64)
    for k in range(n // 2):  # from t = 0, where g^2 = beta(0) is a limit
        t = k / n
        noise = torch.randn(paths, dtype=F64, generator=generator)
        z = z + curve.drift(t) * z / n + (curve.diffusion(t) / n).sqrt() * noise
    alpha, sigma = curve(0.5)
    # the chain's own bias is below a hundredth here; 20,000 paths resolve 0.007 sigma
    assert float(z.mean()) == pytest.approx(float(alpha) * x, abs=0.03)
    assert float(z.std()) == pytest.approx(float(sigma), rel=0.02)
    assert stats.kstest(((z - z.mean()) / z.std()).numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("curve", "law"),
    [
        (Laplace(0.3, 0.8, -9.0, 12.0), stats.laplace(0.3, 0.8)),
        (Laplace(), stats.laplace(0.0, 0.5)),
        (Cauchy(-0.5, 2.0, -15.0, 14.0), stats.cauchy(-0.5, 2.0)),
        (Cauchy(), stats.cauchy(0.0, 1.0)),
    ],
)
def test_uniform_time_draws_the_law(curve, law):
    """t ~ U(0, 1) gives logsnr the law cut to its range: 1 - t is its distribution function."""
    lo, hi = law.cdf(curve.logsnr_min), law.cdf(curve.logsnr_max)
    share = (law.cdf(curve.logsnr(UNIT).numpy()) - lo) / (hi - lo)
    close(torch.from_numpy(share), 1 - UNIT, 1e-12)
    assert curve.logsnr_range == pytest.approx((curve.logsnr_min, curve.logsnr_max), abs=1e-7)


@pytest.mark.parametrize("base", [Cosine(), Flow(), VE(), LinearBeta(), Trig()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_shift_moves_logsnr_once(base, factor):
    moved = Shifted(base, factor)
    close(moved.logsnr(INNER), base.logsnr(INNER) - 2 * math.log(factor), 1e-12)
    twice = Shifted(Shifted(base, factor), factor)
    close(twice.logsnr(INNER), base.logsnr(INNER) - 4 * math.log(factor), 1e-12)
    assert not bool(moved.sigma(UNIT).isnan().any())  # a shift must keep every step finite
    power = 1 if isinstance(base, Flow) else 2
    if isinstance(base, VE):
        close(moved.sigma(UNIT), factor * base.sigma(UNIT), 1e-13)
        close(moved.alpha(UNIT), torch.ones_like(UNIT), 0)
    else:
        close(moved.alpha(UNIT) ** power + moved.sigma(UNIT) ** power, torch.ones_like(UNIT), 1e-13)


def test_shifted_flow_is_the_time_shift_of_sd3():
    """t -> s t / (1 + (s - 1) t) (2403.03206, Eq. 23)."""
    s = 3.0
    close(Shifted(Flow(), s).sigma(UNIT), s * UNIT / (1 + (s - 1) * UNIT), 1e-14)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VE(1.0, 0.5), "sigma_min < sigma_max"),
        (lambda: EDM(0.0, 80.0), "sigma_min < sigma_max"),
        (lambda: EDM(rho=0.0), "rho"),
        (lambda: LinearBeta(20.0, -0.1), "beta"),
        (lambda: SubVP(-1.0, 20.0), "beta"),
        (lambda: Cosine(-0.1), "s"),
        (lambda: LogLinear(10.0, -10.0), "logsnr_min < logsnr_max"),
        (lambda: Laplace(scale=0.0), "scale"),
        (lambda: Cauchy(logsnr_min=3.0, logsnr_max=-3.0), "logsnr_min < logsnr_max"),
        (lambda: Sigmoid(start=3.0, end=-3.0), "start < end"),
        (lambda: Sigmoid(tau=0.0), "tau"),
        (lambda: FromBetas((0.1, 1.0)), "between 0 and 1"),
        (lambda: FromBetas((0.1,)), "at least two"),
        (lambda: Shifted(Flow(), 0.0), "factor above 0"),
        (lambda: Shifted(Flow(), math.nan), "factor above 0"),
        (lambda: Shifted(SubVP(), 2.0), "cannot be shifted"),
        (lambda: FromFunction(lambda t: (t, 1 - t)), "must decrease"),
        (lambda: FromFunction(lambda t: (1 - t, t)).config(), "named schedule"),
        (lambda: from_config({"name": "Linear"}), "There is no noise schedule .Linear."),
        (lambda: from_config({"name": "VE", "args": {"sigma": 3}}), "did you mean 'sigma_min'"),
        (lambda: VE(math.nan, 1.0), "sigma_min < sigma_max"),
        (lambda: LinearBeta(0.1, math.inf), "beta"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(make, says):
    with pytest.raises(SfumatoError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_function_is_a_schedule():
    curve = FromFunction(lambda t: (torch.cos(math.pi * t / 2), torch.sin(math.pi * t / 2)))
    close(curve.time(curve.logsnr(UNIT)), UNIT, 1e-9)
    close(curve.rates(INNER)[0], Trig().rates(INNER)[0], 1e-12)
    constant = FromFunction(lambda t: (1.0, 0.01 + t))  # alpha given as a number
    close(constant.alpha(UNIT), torch.ones_like(UNIT), 0)
    close(constant.rates(INNER)[0], torch.zeros_like(INNER), 0)
