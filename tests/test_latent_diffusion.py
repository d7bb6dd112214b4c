"""Latent models against closed forms: principal components, PPCA, a linear measurement, and what a model has to do."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.exact import PPCA, GaussianMixture
from sfumato.nets import Autoencoder
from sfumato.nets.autoencoder import _gathered, _spread
from sfumato.normaliser import Normaliser
from sfumato.objectives.losses import Autoencoding
from sfumato.objectives.vae import amplitude_error, perceptual_error
from sfumato.training.console import Silent

PROCESS = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
EXACT = -20.0  # the log-variance of codes that are as good as certain


def linear(spec: DataSpec, encode: torch.Tensor, decode: torch.Tensor, log_variance: torch.Tensor, variance: float):
    """The autoencoder y ~ N(encode z, exp(log_variance)), x ~ N(decode y, variance), of normalised data z."""
    net = Autoencoder(tuple(spec.shape), len(encode), (), variance=variance)
    with torch.no_grad():
        net.encoder.output.weight.copy_(torch.cat([encode, torch.zeros_like(encode)]))
        net.encoder.output.bias.copy_(torch.cat([torch.zeros(len(encode)), log_variance]))
        net.decoder.output.weight.copy_(decode)
        net.decoder.output.bias.zero_()
    return sf.Codec(net.requires_grad_(False), spec)


def gaussian_data() -> tuple[torch.Tensor, DataSpec, torch.Tensor]:
    """(covariance of 5 numbers, their spec, the covariance of the normalised ones)."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 0.5, 0.3, 0.2]).sqrt()
    x = GaussianMixture([1.0], torch.ones(1, 5), (root @ root.T)[None]).sample(400, seed=1)
    spec = DataSpec.fit(sf.data.open(x.float()))
    scale = torch.tensor(spec.normaliser.std, dtype=torch.float64)
    return root @ root.T, spec, root @ root.T / scale[:, None] / scale


def test_principal_components_give_samples_of_the_covariance_of_that_rank() -> None:
    cov, spec, normal = gaussian_data()
    axes = torch.linalg.eigh(normal).eigenvectors[:, -2:]
    codec = linear(spec, axes.T.float(), axes.float(), torch.full((2,), EXACT), 0.1)
    law = GaussianMixture([1.0], torch.zeros(1, 2), (axes.T @ normal @ axes)[None])
    x = sf.sample(sf.Latent(law.denoiser(PROCESS), codec), 20_000, 30, "heun", batch=20_000).double()
    scale = torch.tensor(spec.normaliser.std, dtype=torch.float64)
    wanted = scale[:, None] * (axes @ axes.T @ normal @ axes @ axes.T) * scale
    assert torch.allclose(x.T.cov(), wanted, atol=0.03 * float(wanted.diag().max()))
    assert not torch.allclose(wanted, cov, atol=0.03 * float(wanted.diag().max()))  # and it is not that of the data


def ppca() -> tuple[PPCA, sf.Latent, torch.Tensor]:
    """(a law of 4 numbers, the latent model that is this law, samples)."""
    columns = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q
    law = PPCA(columns * torch.tensor([1.5, 0.8]), 0.0, 0.3)
    x = law.sample(64)
    spec = DataSpec.fit(sf.data.open(x.float()))
    spec = dataclasses.replace(spec, normaliser=Normaliser((0.0,) * 4, (1.0,) * 4))
    inverse = torch.linalg.inv(law.precision)
    codec = linear(
        spec, (inverse @ law.loading.T).float(), law.loading.float(), (0.3 * inverse.diag()).log().float(), 0.3
    )
    prior = GaussianMixture([1.0], torch.zeros(1, 2), torch.eye(2)[None])
    return law, sf.Latent(prior.denoiser(PROCESS), codec), x


def test_the_bound_of_an_exact_latent_model_is_log_p() -> None:
    """With the posterior as encoder and exact codes nothing is lost but what the noise of a draw of y adds: nothing."""
    law, model, x = ppca()
    found = sf.log_prob(model, x.float(), "elbo", steps=128)
    assert torch.allclose(found.value, law.log_prob(x), atol=0.05)
    assert found.bound and "autoencoder" in found.method and found.dim == 4
    split = sf.rate_split(model, x.float(), steps=128)
    assert torch.allclose(-split.total * math.log(2), found.value, atol=1e-6)
    mean, cov = law.posterior(x)
    kl = 0.5 * (cov.diag().sum() + mean.square().sum(1) - 2 - cov.logdet())
    # of one draw of y for each sample: log q - log p differs from its mean, the KL, which the mean over samples is near
    assert float(split.semantic.mean()) * math.log(2) == pytest.approx(float(kl.mean()), abs=0.3)


def test_other_likelihoods_and_quantised_codes_are_refused() -> None:
    _, model, x = ppca()
    with pytest.raises(SfumatoError, match="method='elbo'"):
        sf.log_prob(model, x.float())
    with pytest.raises(SfumatoError, match="density of the data"):
        sf.vlb(model, x.float())
    with pytest.raises(SfumatoError, match="leave guidance"):
        sf.log_prob(sf.Rescheduled(model, PROCESS.schedule), x.float(), "elbo")
    with pytest.raises(SfumatoError, match="Only a latent model"):
        sf.rate_split(model.inner, x.float())
    coded = sf.Codec(Autoencoder((4,), 2, (), bottleneck="vq", codes=8), model.autoencoder.spec)
    with pytest.raises(SfumatoError, match="bottleneck='kl'"):
        sf.log_prob(sf.Latent(model.inner, coded), x.float(), "elbo")


def test_samples_of_a_codebook_are_decoded_from_its_vectors() -> None:
    _, model, _ = ppca()
    net = Autoencoder((4,), 2, (), bottleneck="vq", codes=8)
    codec = sf.Codec(net.requires_grad_(False), model.autoencoder.spec)
    x = sf.sample(sf.Latent(model.inner, codec), 200, 10)
    possible = codec.decode(torch.arange(8))
    assert float((x[:, None] - possible).abs().amax(2).amin(1).max()) < 1e-5


def test_encode_and_decode_go_through_the_autoencoder() -> None:
    law, model, x = ppca()
    z = sf.encode(model, x[:8].float(), steps=16)
    assert z.shape == (8, 2)
    wanted = (model.autoencoder(x[:8].float())).double()  # the flow there and back changes no code
    assert torch.allclose(sf.decode(model, z, steps=16).double(), wanted, atol=2e-3)


def test_a_measurement_conditions_the_codes_behind_the_decoder() -> None:
    """y = x_1 + s n of a decoder without noise: the law of x given y is normal, in closed form."""
    law, model, _ = ppca()
    measured, s, row = 1.2, 0.4, law.loading[0]
    cov = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + row[:, None] * row / s**2)
    mean = law.loading @ cov @ row * measured / s**2
    first = sf.operators.Mask(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    found = sf.posterior(model, torch.tensor([measured, 0, 0, 0]), first, s, "smc", 512, 25, 512)
    deviation = (law.loading @ cov @ law.loading.T).diag().sqrt()
    assert found.samples.shape == (512, 4)
    assert torch.allclose(found.mean, mean, atol=0.15)
    assert torch.allclose(found.std, deviation, atol=0.15)


def test_a_file_holds_both_and_a_wrapper_around_both(tmp_path) -> None:
    _, model, _ = ppca()
    net = sf.nets.MLP(2, 8, 1)
    torch.nn.init.normal_(net.output.weight if hasattr(net, "output") else next(net.parameters()))
    whole = sf.Latent(sf.Denoiser(net, PROCESS), model.autoencoder)
    for made in (whole, sf.Rescheduled(whole, sf.schedules.LogLinear(-9.0, 9.0))):
        again = sf.load(sf.save(made, tmp_path / "model.safetensors"))
        assert torch.equal(sf.sample(made, 5, 4), sf.sample(again, 5, 4))


def test_parts_that_do_not_fit_are_refused() -> None:
    _, model, _ = ppca()
    with pytest.raises(SfumatoError, match="codes of shape"):
        sf.Latent(GaussianMixture([1.0], torch.zeros(1, 3), torch.eye(3)[None]).denoiser(PROCESS), model.autoencoder)
    with pytest.raises(SfumatoError, match="data spec"):
        sf.Latent(model.inner, sf.Codec(model.autoencoder.net))


def test_a_residual_autoencoder_rearranges_pixels_there_and_back() -> None:
    h = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert _spread(h, 4).shape == (2, 4, 8, 8)
    assert torch.allclose(_gathered(_spread(h, 4), 8), h, atol=1e-6)
    net = Autoencoder((3, 8, 8), 4, (8, 16), residual=True)
    with torch.no_grad():
        for module in (*net.encoder.downs, *net.decoder.ups):
            for parameter in module.parameters():
                parameter.zero_()
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        # what has not learned to pass anything on still knows the sample
        assert float((net.encode(x).mean[0] - net.encode(x).mean[1]).abs().max()) > 1e-3
    assert sf.nets.from_config(net.config).config == net.config
    with pytest.raises(SfumatoError, match="even sizes"):
        Autoencoder((1, 7, 7), 4, (8, 16), residual=True)


class Shifted(torch.nn.Module):
    """x moved by one place, or smoothed, where the reconstruction would stand."""

    def __init__(self, smooth: bool) -> None:
        super().__init__()
        self.smooth, self.log_variance = smooth, torch.tensor(math.log(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = x.roll((1, 2), (2, 3))
        return (x + moved) / 2 if self.smooth else moved


def test_the_spectral_error_sees_blur_and_not_where_things_are() -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    moved, blurred = amplitude_error(Shifted(False), x), amplitude_error(Shifted(True), x)
    assert float(moved.abs().max()) < 1e-5
    wave = torch.fft.fftfreq(8) * 2 * math.pi
    kept = (1 + torch.exp(-1j * (wave[:, None] + 2 * wave[:5]))).abs() / 2  # of each amplitude
    lost = (torch.fft.rfftn(x, dim=(2, 3), norm="ortho").abs() * (1 - kept)).flatten(1).mean(1) / 2
    assert torch.allclose(blurred, lost, atol=1e-5)


def test_the_perceptual_error_is_that_of_features_over_the_variance_of_the_decoder() -> None:
    x, net = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)), Shifted(False)
    assert float(perceptual_error(net, x, lambda v: v.mean((2, 3))).max()) < 1e-10, "means do not see where things are"
    share = (x - net(x)).square().flatten(1).sum(1) / x.square().flatten(1).sum(1)
    assert torch.allclose(perceptual_error(net, x, lambda v: v), share / 8)
    assert torch.allclose(perceptual_error(net, x, lambda v: v, lambda z: 50 * z), share / 8), "whatever the units"


def test_an_autoencoder_learns_by_features_that_stay_as_they_are(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    own = torch.nn.Conv2d(1, 4, 3)
    before = own.weight.clone()
    words = {"steps": 6, "batch": 16, "net": "Autoencoder(channels=(8, 8))", "sample_every": 0, "console": Silent()}
    for k, given in enumerate(("convolutions", own)):
        loss = Autoencoding(perceptual=1.0, features=given)
        assert not list(loss.parameters()), "they are no part of what is trained"
        run = sf.train(x, tmp_path / str(k), loss=loss, **words)
        assert isinstance(run.denoiser, sf.Codec)
    assert torch.equal(own.weight, before) and own.weight.grad is None
    plain = sf.train(x, tmp_path / "plain", loss="autoencoding", **words)
    assert not torch.equal(*(next(each.denoiser.net.parameters()) for each in (run, plain)))
    with pytest.raises(SfumatoError, match="compares features, not the numbers"):
        sf.train(x, tmp_path / "none", loss=Autoencoding(perceptual=1.0, features="numbers"), **words)
