"""Spectra, noise levels as frequencies, what weights mean in frequency, and the loss by frequency."""

import math

import pytest
import torch

import sfumato as sf
from sfumato import spectra
from sfumato.objectives import weights
from sfumato.process import Basis


def test_white_noise_is_flat_and_within_its_interval():
    found = spectra.power(torch.randn(400, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert float((found.power - 1).abs().max()) < 0.05
    assert float(((found.low <= 1) & (found.high >= 1)).double().mean()) > 0.7


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_slope_of_a_field_is_its_power(exponent):
    field = sf.exact.GaussianField((1, 32, 32), power=exponent)
    law, interval = spectra.power(field.sample(400)).fit()
    assert interval.low - 0.1 < exponent < interval.high + 0.1
    assert interval.low < law.exponent < interval.high
    t = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    assert torch.allclose(law.level(law.cutoff(t)), t, atol=1e-12)
    assert torch.allclose(law.power(law.cutoff(t)), torch.exp(-t), rtol=1e-12)


def test_a_weight_is_the_slope_of_its_loss_in_the_power_of_a_frequency():
    log_power, h = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64), 1e-4
    lam = torch.linspace(-30, 30, 60_001, dtype=torch.float64)

    def loss(log_power):  # 1/2 int w mmse of eps dlam of a Gaussian
        return 0.5 * torch.trapezoid(weights.sigmoid(-2)(lam) * torch.sigmoid(lam + log_power[:, None]), lam)

    slope = (loss(log_power + h) - loss(log_power - h)) / (2 * h)
    assert torch.allclose(spectra.meaning("sigmoid(bias=-2)", log_power), slope, rtol=1e-5)
    assert torch.allclose(spectra.meaning("elbo", log_power), torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-6)


def test_a_wanted_weight_comes_back_as_the_meaning_of_its_noise_levels():
    """dL/dlog P of W is W P: exactly for W ~ P^(a - 1), whose noise levels have w = e^(-a lam)."""
    law, a = spectra.PowerLaw(2.0, 1e-14), 0.5  # no frequency of a picture is beyond 0.5 at these levels
    w = spectra.weight_of(lambda f: law.power(f) ** (a - 1), law)
    log_power = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    found = spectra.meaning(w, log_power)
    assert float(found[1] / found[0]) == pytest.approx(math.exp(1.5 * a), rel=1e-6)
    law = spectra.PowerLaw(2.0, 0.01)
    lam = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    seen = spectra.contrast_sensitivity(law.cutoff(lam) * 32) ** 2 * torch.exp(-lam)
    assert torch.allclose(weights.chosen("eye")(lam), seen, rtol=1e-12)


def test_the_eye_sees_best_at_eight_cycles_a_degree():
    r = torch.linspace(0.1, 40, 4000, dtype=torch.float64)
    seen = spectra.contrast_sensitivity(r)
    assert float(r[seen.argmax()]) == pytest.approx(7.9, abs=0.3) and float(seen.max()) == pytest.approx(0.98, abs=0.01)


def test_a_model_of_second_moments_alone_is_1_everywhere_and_is_drawn(tmp_path):
    field = sf.exact.GaussianField((1, 16, 16), power=2.0)
    model = field.denoiser(sf.Gaussian("cosine"))
    found = spectra.written(model, field.sample(200), levels=5)
    assert float((found.error - 1).abs().max()) < 0.25
    found.save(tmp_path / "written.png")
    assert (tmp_path / "written.png").read_bytes()[:4] == b"\x89PNG"


class Batch:
    cond = {}

    def __init__(self, x):
        self.x, self.index, self.u = x, torch.arange(len(x)), torch.linspace(0.2, 0.8, len(x)).double()


@pytest.mark.parametrize("weight", [None, "sigmoid"])
def test_the_loss_by_frequency_is_the_plain_one_with_equal_weights(weight):
    from sfumato.objectives.losses import Denoising
    from sfumato.objectives.spectral import Spectral
    from sfumato.objectives.times import UniformTime

    field = sf.exact.GaussianField((1, 8, 8))
    model, batch = field.denoiser(sf.Gaussian("cosine")), Batch(field.sample(6))
    given = (UniformTime(), weights.chosen(weight), 0)
    plain, equal = Denoising(*given).losses(model, batch), Spectral(*given, power=0.0).losses(model, batch)
    assert torch.allclose(equal, plain, rtol=1e-12)
    steep = Spectral(*given, power=2.0)
    assert float(steep.shares(Basis((1, 8, 8))).mean()) == pytest.approx(1)
    assert not torch.allclose(steep.losses(model, batch), plain, rtol=0.05)


def test_a_run_takes_the_loss_by_frequency_and_the_weight_of_the_eye(tmp_path):
    run = sf.train("digits", tmp_path / "run", net="tiny", steps=2, loss="spectral(power=0.5)", weight="eye(ppd=8)")
    assert sf.sample(sf.load(run.path), 2, 2).shape == (2, 1, 8, 8)


def test_mistakes_are_said():
    with pytest.raises(sf.SfumatoError, match="fields"):
        spectra.power(torch.zeros(3, 4))
    with pytest.raises(sf.SfumatoError, match="plain"):
        spectra.meaning("plain", torch.zeros(2))
    with pytest.raises(sf.SfumatoError, match="ppd"):
        weights.chosen("eye(ppd=0)")
