"""Targets that are all noise at t = 1 (eps, score): x read from them stays where data lie (cases H6, Q1 to Q4)."""

import pytest
import torch

import sfumato as sf
from sfumato.belief import FAINT, FURTHEST

SCHEDULES = ("linear", "sub-vp", "log-linear", "laplace", "cauchy", "ve", "edm")


class Off(torch.nn.Module):
    """The exact eps of N(0, I) data, and an error of its own."""

    def __init__(self, schedule, error):
        super().__init__()
        self.schedule, self.error = schedule, error

    def forward(self, x, level):
        logsnr = -8 * level.double()[:, None]  # c_in z is standard normal, and eps_hat = sqrt(1 - alpha^2 c_in^2) of it
        return (torch.sigmoid(-logsnr).sqrt() * x + self.error * torch.sin(3 * x.flip(1))).to(x.dtype)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_error_in_pure_noise_is_not_multiplied(name):
    """A network with an error of 0.1 in eps everywhere: samples of N(0, 1) with a spread of about 1, by any solver."""
    schedule = sf.registry.make("schedule", name)
    model = sf.Denoiser(Off(schedule, 0.1), sf.Gaussian(schedule, "eps"))
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * float(schedule.sigma(1.0))
    for solver in (None, "ddim", "dpm++2m", "ddpm"):
        x = sf.sample(model, z=z, steps=20, solver=solver, batch=4000)
        assert 0.7 < float(x.std()) < 1.2, (name, solver, float(x.std()))


def test_what_lies_within_the_data_is_left_alone():
    """Only faint samples, sigma > FAINT alpha, and of them those that lie beyond FURTHEST deviations."""
    process = sf.Gaussian(sf.schedules.LinearBeta(), "eps")
    faint = float(process.schedule.time(-2 * torch.tensor(FAINT, dtype=torch.float64).log()))
    z = torch.randn(6, 3, dtype=torch.float64)
    for t in (0.2, faint - 1e-6, faint + 1e-6, 1.0):
        alpha, sigma = process.schedule(t)
        for size in (0.5, 0.9 * FURTHEST, 2 * FURTHEST):
            wanted = torch.full_like(z, size)
            y = (z - alpha * wanted) / sigma
            for times in (t, torch.full((6,), t, dtype=torch.float64)):
                belief = process.read(y, z, times)
                held = FURTHEST**2 / size if t > faint and size > FURTHEST else size
                torch.testing.assert_close(belief.x, torch.full_like(z, held), rtol=1e-6, atol=1e-9)
                torch.testing.assert_close(belief.rows(slice(2, 4)).x, belief.x[2:4])
                assert torch.equal(belief.target("eps"), y)
    direct = sf.Gaussian(sf.schedules.LinearBeta(), "v")
    assert not direct.indirect and process.indirect and sf.Gaussian(sf.schedules.VE(), "score").indirect
