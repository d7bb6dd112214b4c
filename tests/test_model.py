"""The denoiser: its scaling, what the network sees, and that every target and schedule means the same belief."""

import math

import pytest
import torch

from curves import CURVES
from loops import every
from sfumato import target
from sfumato.belief import FAINT, FURTHEST
from sfumato.exact import GaussianMixture
from sfumato.model import Denoiser, Model, noise_level
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta, Shifted

F64 = torch.float64


def close(a, b, tol):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


class Recorder(torch.nn.Module):
    """A network that keeps what it was given and answers with a fixed linear map of it."""

    def forward(self, x, level, label=None):
        self.x, self.level, self.label = x, level, label
        return 0.3 * x + level.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)


@every(curve=CURVES, name=target.NAMES)
def test_belief_is_the_reading_of_the_network(curve, name):
    process = Gaussian(curve)
    try:
        target.check(name, curve)
    except ValueError:
        return  # refused: see test_target
    net = Recorder()
    denoiser = Denoiser(net, process, target=name, sigma_data=0.6)
    z = torch.randn(5, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.05, 1, 5, dtype=F64)
    belief = denoiser(z, t)
    alpha, sigma = (c[:, None, None] for c in curve(t))
    close(net.x, z / torch.sqrt(sigma**2 + alpha**2 * 0.36), 1e-12)
    # EDM's c_noise = ln(sigma)/4 with sigma the noise per unit of signal
    expected = (sigma.flatten().log() - alpha.flatten().log()) / 4
    close(net.level, expected.clamp(-5, 5).float(), 1e-5)
    assert net.level.dtype == torch.float32 and net.level.shape == (5,)
    y = 0.3 * net.x + net.level.double()[:, None, None]
    whole = torch.ones(5, dtype=torch.bool)
    if denoiser.process.indirect:  # where data are faint in their noise x is held within them: process/test_faint
        whole = (sigma <= FAINT * 0.6 * alpha).flatten()
        held = belief.x[~whole].square().mean((1, 2)).sqrt()
        assert not len(held) or float(held.max()) <= FURTHEST * 0.6 * (1 + 1e-9)
    torch.testing.assert_close(belief.target(name), y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))
    torch.testing.assert_close(
        (alpha * belief.x + sigma * belief.eps)[whole], z[whole], rtol=1e-9, atol=1e-9 * float(z.abs().max() + 1)
    )
    assert belief.sigma_data == 0.6


def test_a_zero_network_means_the_linear_denoiser():
    """F = 0 is x = c_skip z, the optimum for data N(0, sigma_data^2) (J1: zero output at the start)."""

    class Zero(torch.nn.Module):
        def forward(self, x, level):
            return torch.zeros_like(x)

    for curve in (LinearBeta(), Flow(), EDM(), Cosine()):
        process, sd = Gaussian(curve), 0.7
        denoiser = Denoiser(Zero(), process, target="F", sigma_data=sd)
        law = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], sd**2)
        t = torch.linspace(0.01, 1, 8, dtype=F64)
        z = law.sample(8, seed=0, process=process, t=t)
        close(denoiser(z, t).x, law.moments(z, process=process, t=t).x, 1e-12)


def test_network_sees_the_same_under_any_schedule():
    """Equal logsnr, z scaled by the norm: equal input and equal noise level (M3)."""
    base, seen = Cosine(), []
    z = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    lam = torch.linspace(-8, 7, 6, dtype=F64)
    for curve in (base, LinearBeta(), Flow(), VE(0.005, 300.0), EDM(0.002, 300.0), Shifted(Cosine(), 3.0)):
        net = Recorder()
        t = curve.time(lam)
        alpha, sigma = curve(t)
        state = z * torch.hypot(alpha, sigma)[:, None]
        Denoiser(net, Gaussian(curve)).predict(state, t)
        seen.append((net.x, net.level))
    for x, level in seen[1:]:
        close(x, seen[0][0], 1e-9)
        close(level, seen[0][1], 1e-6)


def test_noise_level_is_finite_everywhere():
    for curve in CURVES.values():
        level = noise_level(curve.logsnr(torch.linspace(0, 1, 101, dtype=F64)))
        assert bool(level.isfinite().all()) and bool((level[1:] >= level[:-1]).all())
    assert float(noise_level(torch.tensor(-2 * math.log(80.0), dtype=F64))) == pytest.approx(math.log(80.0) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_state_is_kept(dtype):
    denoiser = Denoiser(Recorder(), Gaussian(Cosine()))
    belief = denoiser(torch.ones(2, 3, dtype=dtype), 0.5)
    assert {getattr(belief, n).dtype for n in ("x", "eps", "v", "velocity", "F", "score")} == {dtype}
    assert belief.alpha.dtype == F64


def test_low_precision_touches_the_network_alone():
    """bf16 inside the network; scaling and belief in float32, so that z = alpha x + sigma eps holds to float32."""
    torch.manual_seed(0)
    denoiser = Denoiser(torch.nn.Linear(8, 8), Gaussian(Cosine()))
    denoiser.net.forward = lambda x, level, f=denoiser.net.forward: f(x)
    denoiser.compute_dtype = torch.bfloat16
    z, t = torch.randn(4, 8), torch.linspace(0.1, 0.9, 4, dtype=F64)
    low = denoiser(z, t)
    alpha, sigma = (c.float()[:, None] for c in denoiser.process.schedule(t))
    assert low.x.dtype == torch.float32
    close(alpha * low.x + sigma * low.eps, z, 1e-5)
    denoiser.compute_dtype = None
    full = denoiser(z, t)
    gap = float((low.v - full.v).abs().max())
    assert 0 < gap < 0.05


@every(on=[True, False])
def test_low_precision_follows_the_weights_within_an_autocast_of_the_caller(on):
    """Torch keeps the casts of weights until the outermost autocast ends."""
    torch.manual_seed(0)
    denoiser = Denoiser(torch.nn.Linear(8, 8), Gaussian(Cosine()))
    denoiser.net.forward = lambda x, level, f=denoiser.net.forward: f(x)
    denoiser.compute_dtype = torch.bfloat16
    z = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        denoiser.raw(z, 0.5)
        with torch.no_grad():
            denoiser.net.weight.zero_()
            denoiser.net.bias.fill_(2.0)
        assert torch.equal(denoiser.raw(z, 0.5), torch.full((4, 8), 2.0))


def test_condition_reaches_the_network():
    net = Recorder()
    denoiser = Denoiser(net, Gaussian(Cosine()))
    label = torch.tensor([3, -1])
    denoiser(torch.zeros(2, 3), 0.5, label=label)
    assert torch.equal(net.label, label)


def test_number_or_row_of_times():
    denoiser = Denoiser(Recorder(), Gaussian(LinearBeta()))
    z = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    close(denoiser(z, 0.3).x, denoiser(z, torch.full((4,), 0.3)).x, 1e-6)
    mixed = denoiser(z, torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)).x
    close(mixed[1], denoiser(z, 0.3).x[1], 1e-7)


def test_exact_and_trained_models_keep_the_same_promise():
    denoiser = Denoiser(Recorder(), Gaussian(Cosine()))
    exact = GaussianMixture([1.0], [[0.0]], 1.0).denoiser(Gaussian(Cosine()))
    assert isinstance(denoiser, Model) and isinstance(exact, Model)
    assert denoiser.shape is None and exact.shape == (1,)
