"""log p_t up to a constant, at one call: on a Gaussian in closed form, on a mixture after training."""

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.exact import GaussianMixture
from sfumato.likelihood import energy

F64 = torch.float64
LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.4], [0.9, -0.2]], [0.15, 0.1])


class Slope(nn.Module):
    """f(x) = k x: <x, f> = k |x|^2, y = 2 k x, a linear denoiser."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x, noise_level, label=None):
        return self.k * x


@pytest.mark.parametrize("target", ["x", "eps", "score", "v", "velocity", "F"])
@pytest.mark.parametrize("curve", [sf.schedules.LinearBeta(), sf.schedules.VE(0.1, 9.0)], ids=["VP", "VE"])
def test_of_a_gaussian_in_closed_form(target, curve):
    """Data N(0, s^2): U_t = |z|^2 / (2 (alpha^2 s^2 + sigma^2)), with the network of the best linear denoiser."""
    spread, t = 1.6, 0.45
    law, process = GaussianMixture([1.0], [[0.0, 0.0]], spread**2), sf.Gaussian(curve)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    best = law.denoiser(process)(z, t).target(target) if target != "F" else None
    held = sf.Denoiser(nn.Identity(), process, target, sigma_data=0.8)
    if best is None:
        best = sf.Estimate(z, t, curve, x=law.denoiser(process)(z, t).x, sigma_data=0.8).target("F")
    c_in, _ = held.process.scaling(t, z.device)
    slope = best / (c_in * z)
    torch.testing.assert_close(slope, slope[:1, :1].expand(5, 2))
    denoiser = sf.Denoiser(sf.nets.Energy(Slope(float(slope[0, 0]) / 2)), process, target, sigma_data=0.8)
    found, true = energy(denoiser, z, t), -law.log_prob(z, process=process, t=t)
    torch.testing.assert_close(found - found[0], true - true[0], rtol=1e-9, atol=1e-9)


def test_times_of_a_batch_and_gradients():
    denoiser = sf.Denoiser(sf.nets.Energy(sf.nets.MLP(2, 8, 1)).double(), sf.Gaussian(sf.schedules.Flow()), "velocity")
    nn.init.normal_(denoiser.net.net.output.weight, generator=torch.Generator().manual_seed(0))
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=F64)
    single = torch.cat([energy(denoiser, z[i : i + 1], float(t[i])) for i in range(3)])
    torch.testing.assert_close(energy(denoiser, z, t), single)
    energy(denoiser, z, t).sum().backward()
    assert float(denoiser.net.net.output.weight.grad.abs().max()) > 0


def trained(width, steps, batch):
    """An energy of the mixture by plain denoising score matching, and its process."""
    torch.manual_seed(0)
    denoiser = sf.Denoiser(sf.nets.Energy(sf.nets.MLP(2, width, 2)), sf.Gaussian(sf.schedules.Cosine()), "v")
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    x = LAW.sample(steps * batch, seed=1).float()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        index = torch.arange(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        sf.denoising_loss(denoiser, x[index], index=index).mean().backward()
        optimizer.step()
    return denoiser


def off(denoiser, t):
    """The standard deviation of U_t + log p_t over the noised law, in nats."""
    z = LAW.sample(2000, seed=9, process=denoiser.process, t=t)
    with torch.no_grad():
        return float((energy(denoiser, z.float(), t) + LAW.log_prob(z, process=denoiser.process, t=t)).std())


LIMITS = {200: {0.3: 0.3, 0.5: 0.12, 0.8: 0.04}, 2000: {0.3: 0.05, 0.5: 0.03, 0.8: 0.01}}  # steps -> t -> nats


@pytest.mark.parametrize("steps, width, batch", [(200, 48, 128), pytest.param(2000, 64, 256, marks=pytest.mark.slow)])
def test_density_ratios_of_a_trained_energy(steps, width, batch):
    """log p_t(z) - log p_t(z') of a mixture, where log p_t itself varies by about one nat."""
    denoiser = trained(width, steps, batch)
    found = {t: off(denoiser, t) for t in LIMITS[steps]}
    assert all(found[t] < limit for t, limit in LIMITS[steps].items()), found
