"""Zero terminal SNR: Algorithm 1 of 2305.08891 on its tables, and the brightness that a terminal signal costs."""

import math

import pytest
import torch
from torch import nn

from sfumato import schedules
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.model import Denoiser
from sfumato.objectives.prior import prior_kl
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import EDM, VE, Cosine, Flow, FromBetas, LinearBeta, LogLinear, SubVP, zero_terminal_snr

F64 = torch.float64
TABLES = {"ddpm": (FromBetas.ddpm(), 4.0e-5), "latent": (FromBetas.scaled_linear(), 4.7e-3)}


def algorithm_1(betas):
    """The published program on a table of betas, to sqrt(alpha_bar)."""
    root = torch.cumprod(1 - torch.tensor(betas, dtype=F64), 0).sqrt()
    return (root - root[-1]) * root[0] / (root[0] - root[-1])


@pytest.mark.parametrize("name", TABLES)
def test_it_is_algorithm_1_on_the_tables(name):
    table, published = TABLES[name]
    moved, n = zero_terminal_snr(table), len(table.betas)
    t = torch.arange(1, n + 1, dtype=F64) / n
    assert float(table.logsnr(1.0).exp()) == pytest.approx(published, rel=0.02)
    assert float(moved.alpha(1.0)) == 0 and float(moved.logsnr(1.0).exp()) == 0
    torch.testing.assert_close(moved.alpha(t), algorithm_1(table.betas), rtol=0, atol=1e-13)
    alpha, sigma = moved(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(n, dtype=F64), rtol=0, atol=1e-13)
    assert float(moved.alpha(1 / n)) == pytest.approx(math.sqrt(1 - table.betas[0]), rel=1e-14)


@pytest.mark.parametrize("name", TABLES)
def test_the_prior_term_is_gone(name):
    """L_T = 1/2 snr(1) |x|^2 before, 0 after."""
    table, published = TABLES[name]
    x = torch.ones(1, 3, 8, 8, dtype=F64)
    assert float(prior_kl(Gaussian(table), x)) == pytest.approx(0.5 * published * 192, rel=0.02)
    assert float(prior_kl(Gaussian(zero_terminal_snr(table)), x)) == 0


def test_other_paths_keep_what_they_are():
    t = torch.linspace(0, 1, 33, dtype=F64)
    moved, base = zero_terminal_snr(SubVP(0.1, 8.0)), SubVP(0.1, 8.0)
    torch.testing.assert_close(moved.sigma(t), base.sigma(t))
    ratio = (base.alpha(t) - base.alpha(1.0)) / (1 - base.alpha(1.0))
    torch.testing.assert_close(moved.alpha(t), ratio, rtol=1e-12, atol=1e-15)
    for ended in (Flow(), Cosine()):
        assert zero_terminal_snr(ended) is ended


@pytest.mark.parametrize("curve", [VE(), EDM()], ids=lambda c: type(c).__name__)
def test_a_path_whose_signal_never_falls_is_refused(curve):
    with pytest.raises(SfumatoError, match="alpha must decrease"):
        zero_terminal_snr(curve)
    with pytest.raises(SfumatoError, match="kept time"):
        schedules.ZeroTerminalSNR(LinearBeta(), 1.0)


def test_it_goes_into_a_file_and_back():
    for curve in (zero_terminal_snr(FromBetas((0.1, 0.2, 0.3))), zero_terminal_snr(LogLinear(-3.0, 9.0))):
        again = schedules.from_config(curve.config())
        assert again == curve and float(again.alpha(0.4)) == float(curve.alpha(0.4))


class VOf(nn.Module):
    """The v of an exact law as a network: it hears z / sqrt(alpha^2 + sigma^2) = z and -logsnr / 8 alone."""

    def __init__(self, law, schedule):
        super().__init__()
        self.law, self.schedule, self.shape = law, schedule, law.shape

    def forward(self, z, level):
        t = self.schedule.time(-8 * level.double())
        return self.law.denoiser(Gaussian(self.schedule))(z, t).v


def test_v_samples_from_it_and_eps_is_refused():
    curve = zero_terminal_snr(FromBetas.scaled_linear())
    law = GaussianMixture([0.4, 0.6], [[2.0], [6.0]], 0.25)
    net = VOf(law, curve)
    for target in ("eps", "score"):
        with pytest.raises(SfumatoError, match="zero signal"):
            Denoiser(net, Gaussian(curve), target)
    x = sample(Denoiser(net, Gaussian(curve), "v"), 4000, steps=20, seed=2).double()
    spread = math.sqrt(float(law.sample(20_000).var()))
    assert float(x.mean()) == pytest.approx(4.4, abs=4 * spread / 4000**0.5)
    assert float(x.std()) == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize("curve", [FromBetas.scaled_linear(), LogLinear(-4.0, 12.0)], ids=["latent", "log_linear"])
def test_brightness_is_lost_by_the_computed_amount(curve):
    """Data N(m, s^2) from N(0, sigma_1^2): the mean falls short by alpha_1 m s / sqrt(alpha_1^2 s^2 + sigma_1^2)."""
    mean, spread, n = 5.0, 0.8, 4000
    law = GaussianMixture([1.0], [[mean]], spread**2)
    alpha, sigma = (float(c) for c in curve(1.0))
    lost = alpha * mean * spread / math.hypot(alpha * spread, sigma)
    error = 4 * spread / n**0.5
    assert lost > 3 * error
    assert float(sample(law.denoiser(Gaussian(curve)), n, steps=30, seed=1).mean()) == pytest.approx(
        mean - lost, abs=error
    )
    moved = zero_terminal_snr(curve)
    assert float(sample(law.denoiser(Gaussian(moved)), n, steps=30, seed=1).mean()) == pytest.approx(mean, abs=error)


def test_a_far_mixture_is_biased_by_what_the_exact_flow_says():
    """Two modes far from 0: the law sampled from N(0, sigma_1^2) is that of the flow, by quadrature over z_1."""
    curve, n = LogLinear(-4.0, 12.0), 6000
    law = GaussianMixture([0.5, 0.5], [[4.0], [7.0]], 0.3)
    u = (torch.arange(2001, dtype=F64) + 0.5) / 2001
    start = float(curve.sigma(1.0)) * torch.special.ndtri(u)[:, None]
    pushed = law.flow(start, 1.0, 0.0, Gaussian(curve), tol=1e-8)
    lost, spread = 5.5 - float(pushed.mean()), float(pushed.std())
    error = 4 * spread / n**0.5
    assert lost > 3 * error
    found = sample(law.denoiser(Gaussian(curve)), n, steps=60, seed=3)
    assert float(found.mean()) == pytest.approx(5.5 - lost, abs=error)
    unbiased = sample(law.denoiser(Gaussian(zero_terminal_snr(curve))), n, steps=60, seed=3)
    assert float(unbiased.mean()) == pytest.approx(5.5, abs=error)
