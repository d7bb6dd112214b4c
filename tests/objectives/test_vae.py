"""Bounds of autoencoders against probabilistic PCA, of which everything is known: tight after an E step (A2)."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import SfumatoError
from sfumato.exact import PPCA
from sfumato.nets import Autoencoder, VectorQuantiser
from sfumato.objectives.vae import decoder_log_prob, elbo, elbo_loss, importance_bound, vq_loss


def principal(dim: int = 5, latent: int = 2) -> PPCA:
    """Orthogonal columns, as maximum likelihood has them: the posterior is then diagonal, as an encoder's is."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(300, dim, generator=generator, dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return PPCA.fit(draw @ mix + 1.0, latent)


def linear(model: PPCA, encoder: tuple[Tensor, Tensor, Tensor] | None = None) -> Autoencoder:
    """A linear VAE in double precision with the law of `model`; encoder (weight, bias, log-variance), or its E step."""
    net = Autoencoder((model.dim,), model.latent, (), variance=model.variance).double()
    mean, cov = model.posterior(torch.zeros(1, model.dim, dtype=torch.float64))
    slope = torch.linalg.inv(model.precision) @ model.loading.T
    weight, bias, log_variance = encoder or (slope, mean[0], cov.diagonal().log())
    with torch.no_grad():
        net.log_variance.fill_(math.log(model.variance))  # double() came after the rounding to float32
        net.encoder.output.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
        net.encoder.output.bias.copy_(torch.cat([bias, log_variance]))
        net.decoder.output.weight.copy_(model.loading)
        net.decoder.output.bias.copy_(model.mean)
    return net


def other_encoder(model: PPCA) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(model.latent, model.dim), (model.latent,), (model.latent,)]
    weight, bias, log_variance = (0.3 * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return weight, bias, log_variance


def expected_elbo(net: Autoencoder, x: Tensor, nodes: int = 3) -> Tensor:
    """E over eps by Gauss and Hermite: exact for a linear decoder, whose log p(x | y) is quadratic in eps."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    total = torch.zeros(len(x), dtype=torch.float64)
    for each in itertools.product(range(nodes), repeat=net.latent_shape[0]):
        eps = torch.tensor(points[list(each)]).expand(len(x), -1)
        share = float(np.prod(weights[list(each)])) / (2 * math.pi) ** (len(each) / 2)
        total += share * elbo(net, x, eps=eps).nats
    return total


def test_with_the_exact_posterior_the_elbo_is_the_evidence() -> None:
    model = principal()
    x, net = model.sample(40), linear(model)
    assert torch.allclose(expected_elbo(net, x), model.log_prob(x), rtol=0, atol=1e-10)


def test_the_gap_is_the_kl_to_the_posterior() -> None:
    model = principal()
    x, encoder = model.sample(40), other_encoder(model)
    net = linear(model, encoder)
    found = expected_elbo(net, x)
    mean, cov = x @ encoder[0].T + encoder[1], torch.diag(encoder[2].exp())
    assert torch.allclose(found, model.elbo(x, mean, cov), rtol=0, atol=1e-10)
    assert torch.allclose(model.log_prob(x) - found, model.gap(x, mean, cov), rtol=0, atol=1e-10)
    assert float(model.gap(x, mean, cov).min()) > 0.1


def test_with_the_exact_posterior_every_draw_of_the_importance_bound_is_the_evidence() -> None:
    model = principal()
    x, net = model.sample(40), linear(model)
    for samples in (1, 3):
        found = importance_bound(net, x, samples, seed=5)
        assert torch.allclose(found, model.log_prob(x), rtol=0, atol=1e-10)


def test_the_importance_bound_rises_to_the_evidence() -> None:
    model = principal()
    x, net = model.sample(1), linear(model)
    with torch.no_grad():
        net.encoder.output.bias += torch.tensor([0.1, -0.2, 0.8, 0.8])  # beside the posterior, and wider
    many = x.expand(4000, -1)
    wanted, means = float(model.log_prob(x)), []
    for samples in (1, 8, 64):
        found = importance_bound(net, many, samples).detach()
        means.append(float(found.mean()))
        weights = found.exp()  # unbiased for p(x) whatever the number of samples
        assert abs(float(weights.mean()) - math.exp(wanted)) < 4 * float(weights.std()) / math.sqrt(len(many))
    assert means[0] == pytest.approx(float(expected_elbo(net, x).detach()), abs=0.05)
    assert means[0] < means[1] < means[2] < wanted + 0.01 and wanted - means[2] < 0.1 * (wanted - means[0])


def test_the_decoder_is_the_law_of_torch() -> None:
    net = Autoencoder((2, 6, 5), 3, (8, 8)).double()
    torch.nn.init.constant_(net.log_variance, -0.7)
    x, y = torch.randn(4, 2, 6, 5).double(), torch.randn(4, *net.latent_shape).double()
    law = torch.distributions.Normal(net.decode(y), math.exp(-0.35))
    assert torch.allclose(decoder_log_prob(net, x, y), law.log_prob(x).flatten(1).sum(1), rtol=1e-12)


def test_the_kl_is_that_of_torch() -> None:
    net, x = Autoencoder((7,), 3, (16,)).double(), torch.randn(9, 7).double()
    code = net.encode(x)
    law = torch.distributions.Normal(code.mean, (0.5 * code.log_variance).exp())
    wanted = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(code.kl(), wanted, rtol=1e-10, atol=1e-14)
    y = code.sample(torch.randn(9, 3).double())
    assert torch.allclose(code.log_prob(y), law.log_prob(y).sum(1), rtol=1e-12)


def test_the_loss_weighs_the_kl_and_spares_free_bits() -> None:
    net, x = Autoencoder((7,), 3, (16,)), torch.randn(9, 7)
    bound = elbo(net, x, seed=3)
    assert torch.allclose(elbo_loss(net, x, seed=3), -bound.nats)
    assert torch.allclose(elbo_loss(net, x, beta=4.0, seed=3), 4 * bound.kl - bound.fit)
    means = net.encode(x).kl().mean(0).detach()
    spared = float(means.sort().values[1:].mean())  # above the two smaller channels or the one, below the largest
    free = elbo_loss(net, x, free_bits=spared, seed=3) + bound.fit
    assert float(free.mean()) == pytest.approx(float(means.clamp_min(spared).sum()), rel=1e-5)
    (slope,) = torch.autograd.grad(elbo_loss(net, x, free_bits=1e6, beta=7.0, seed=3).sum(), [net.log_variance])
    (plain,) = torch.autograd.grad(-bound.fit.sum(), [net.log_variance])
    assert torch.allclose(slope, plain)  # all spared: the KL has no gradient left


def test_a_draw_depends_on_its_own_number_alone() -> None:
    net, x = Autoencoder((7,), 3, (16,)), torch.randn(9, 7)
    whole = elbo(net, x, seed=3).nats
    assert torch.allclose(elbo(net, x[4:], seed=3, index=torch.arange(4, 9)).nats, whole[4:], atol=1e-6)
    assert not torch.allclose(elbo(net, x, seed=4).nats, whole)


def test_the_quantised_loss_and_where_its_gradients_go() -> None:
    net, x = Autoencoder((6,), 2, (12,), bottleneck="vq", codes=5, variance=0.5), torch.randn(8, 6)
    found = vq_loss(net, x, commitment=0.25)
    features = net.encoder(x)
    distances = torch.stack([(features - e).square().sum(1) for e in net.quantiser.codebook], 1)
    assert torch.equal(found.code.codes, distances.argmin(1))
    value = net.quantiser.codebook[found.code.codes]
    fit = torch.distributions.Normal(net.decode(value), math.sqrt(0.5)).log_prob(x).sum(1)
    assert torch.allclose(found.loss, 0.25 * distances.min(1).values - fit, rtol=1e-5)
    # straight through: the features hear the decoder's gradient as if they were the codes, and the pull to the codes
    weight = net.encoder.output.bias
    (given,) = torch.autograd.grad(found.loss.sum(), [weight], retain_graph=True)
    at = value.clone().requires_grad_()
    (back,) = torch.autograd.grad(-torch.distributions.Normal(net.decode(at), math.sqrt(0.5)).log_prob(x).sum(), [at])
    wanted = back + 0.5 * (features - value)
    assert torch.allclose(given, wanted.sum(0), rtol=1e-4, atol=1e-5)


def test_the_codebook_is_online_k_means() -> None:
    """Without memory (decay 0) one step of learning is one step of Lloyd's algorithm."""
    torch.manual_seed(0)
    quantiser, points = VectorQuantiser(4, 2, decay=0.0), torch.randn(400, 2)
    assert quantiser.learn(quantiser(points)) == 4  # all start anew at first, at points of the batch
    assert all(bool((points == e).all(1).any()) for e in quantiser.codebook)
    for _ in range(5):
        code = quantiser(points)
        means = torch.stack([points[code.codes == k].mean(0) for k in range(4)])
        assert quantiser.learn(code) == 0
        assert torch.allclose(quantiser.codebook, means, atol=1e-6)
    assert 3 < quantiser.perplexity <= 4


def test_a_dead_code_starts_anew() -> None:
    torch.manual_seed(0)
    quantiser, points = VectorQuantiser(3, 2, decay=0.5), torch.randn(100, 2)
    quantiser.learn(quantiser(points))
    quantiser.codebook[1] = 1000.0
    restarts = [quantiser.learn(quantiser(points)) for _ in range(8)]
    assert sum(restarts) == 1 and float(quantiser.codebook.abs().max()) < 5
    assert quantiser.perplexity > 2


def test_mistakes_are_said() -> None:
    plain, coded = Autoencoder((4,), 2, ()), Autoencoder((4,), 2, (), bottleneck="vq")
    x = torch.zeros(1, 4)
    with pytest.raises(SfumatoError, match="VQ bottleneck"):
        elbo(coded, x)
    with pytest.raises(SfumatoError, match="bottleneck='vq'"):
        vq_loss(plain, x)
    with pytest.raises(SfumatoError, match="at least 1 sample"):
        importance_bound(plain, x, 0)
    with pytest.raises(SfumatoError, match="not be negative"):
        elbo_loss(plain, x, beta=-1.0)
