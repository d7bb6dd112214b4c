"""Samples are looked at once before they are handed over (cases N1 and N2)."""

import warnings

import pytest
import torch

import sfumato as sf
from sfumato.data import DataSpec
from sfumato.errors import SfumatoWarning
from sfumato.exact import GaussianMixture


class Answer(torch.nn.Module):
    """A network that answers the same v everywhere: `scale` times the label's sign, or NaN."""

    def __init__(self, scale, shape=(1, 4, 4)):
        super().__init__()
        self.scale, self.shape = scale, shape

    def forward(self, x, level, label=None):
        sign = 0 if label is None else torch.where(label < 0, 0, label * 2 - 1).view(-1, 1, 1, 1)
        return torch.zeros_like(x) + sign * self.scale


def pictures():
    x = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return DataSpec.fit(sf.data.open(x, labels=["a", "b"] * 30))


def denoiser(scale):
    return sf.Denoiser(Answer(scale), sf.Gaussian(sf.schedules.Cosine()), spec=pictures())


def test_healthy_samples_are_handed_over_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.sample(denoiser(0.3), 20, steps=8, label="b")
        law = GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [0.8, 0.0]], 0.1)
        sf.sample(law.denoiser(sf.Gaussian(sf.schedules.Flow())), 20, steps=8)


def test_guidance_far_too_strong_is_reported_with_the_share_of_clipped_values():
    with pytest.warns(SfumatoWarning, match="100 % of the sampled values were clipped .* lower the guidance"):
        x = sf.sample(sf.guide(denoiser(0.3), 1e6), 20, steps=8, label="b")
    assert set(x.unique().tolist()) <= {0, 255}


def test_values_that_are_no_numbers_are_reported():
    with pytest.warns(SfumatoWarning, match="100 % of the sampled values are NaN"):
        sf.sample(denoiser(float("nan")), 8, steps=4, label="a")
    plan = sf.solvers.DDIM().plan(sf.schedules.Cosine(), 3)
    lines = [sf.solvers.Linear(dict.fromkeys(line.z, 1e30), line.x, line.noise) for line in plan.lines]
    broken = sf.solvers.Plan(plan.name, 3, plan.times, plan.stop, plan.path, tuple(lines))
    with pytest.warns(SfumatoWarning, match="NaN or infinite|lie outside|clipped"):
        sf.sample(denoiser(0.3), 8, solver=broken, label="a")


def test_samples_that_are_all_the_same_are_reported():
    model = denoiser(0.0)
    with pytest.warns(SfumatoWarning, match="All 6 samples are the same"):
        sf.sample(model, z=torch.zeros(6, 1, 4, 4), steps=4)
    with warnings.catch_warnings():  # one sample cannot differ from itself
        warnings.simplefilter("error")
        sf.sample(model, 1, steps=4)


def test_floats_far_from_the_data_are_reported_and_noisy_states_are_not_looked_at():
    x = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    spec = DataSpec.fit(sf.data.open(x))
    model = sf.Denoiser(Answer(0.0), sf.Gaussian(sf.schedules.Cosine()), spec=spec)
    far = 1e3 * torch.randn(9, 1, 4, 4)
    with pytest.warns(SfumatoWarning, match="lie outside the data"):
        sf.sample(model, z=far, steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.sample(model, z=far, steps=1, t_stop=0.5)
