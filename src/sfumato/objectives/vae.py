"""Bounds on the likelihood of an autoencoder: the ELBO, the importance-weighted bound and the VQ loss.

    log p(x) >= ELBO = E_q(y|x) log p(x | y) - KL(q(y | x) || N(0, I)),   gap = KL(q(y | x) || p(y | x))
    log p(x) >= L_k  = E log (1/k) sum_j p(x, y_j) / q(y_j | x),          L_1 = ELBO, L_k -> log p(x)
    VQ:   -log p(x | e) + commitment |f - sg(e)|^2,   e the nearest vector of the codebook to the features f

As in expectation maximisation, a better encoder closes the gap (E; to 0 if q is the posterior) and a better decoder
raises the bound (M). In `exact.PPCA` everything is known exactly. Sources: Kingma and Welling 2013
(1312.6114), Eq. 3 and 10; Burda et al. 2015 (1509.00519), Eq. 8; van den Oord et al. 2017 (1711.00937), Eq. 3; free
bits: Kingma et al. 2016 (1606.04934), Eq. 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.nets import Autoencoder, GaussianCode, QuantisedCode
from sfumato.nets.codes import log_normal

COMMITMENT = 0.25
Index = Tensor | Sequence[int] | None


class Elbo(NamedTuple):
    """Nats of each sample, (B,): fit = log p(x | y) at a draw of y, kl = KL(q(y | x) || N(0, I))."""

    fit: Tensor
    kl: Tensor

    @property
    def nats(self) -> Tensor:
        return self.fit - self.kl


def decoder_log_prob(net: Autoencoder, x: Tensor, y: Tensor) -> Tensor:
    """log N(x; decode(y), exp(log_variance) I) in nats, (B,)."""
    scale = (-0.5 * net.log_variance).exp()
    return log_normal((x - net.decode(y)) * scale) - 0.5 * x[0].numel() * net.log_variance


def gaussian_code(net: Autoencoder, x: Tensor) -> GaussianCode:
    """q(y | x); SfumatoError for a network without a KL bottleneck."""
    code = net.encode(x)
    if not isinstance(code, GaussianCode):
        raise SfumatoError("The ELBO needs a KL bottleneck, but this autoencoder has a VQ bottleneck: use vq_loss.")
    return code


def _draw(net: Autoencoder, x: Tensor, seed: int, index: Index, step: int = 0) -> Tensor:
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    return noise.normal(seed, index, net.latent_shape, noise.TRAIN_NOISE, step, x.device, x.dtype)


def elbo(net: Autoencoder, x: Tensor, eps: Tensor | None = None, seed: int = 0, index: Index = None) -> Elbo:
    """The ELBO with one draw y = mean + std eps per sample and the KL in closed form.

    x: normalised (B, *shape). eps: (B, *latent_shape), by default drawn from (seed, index).
    """
    code = gaussian_code(net, x)
    eps = _draw(net, x, seed, index) if eps is None else eps
    return Elbo(decoder_log_prob(net, x, code.sample(eps)), code.kl().flatten(1).sum(1))


def elbo_loss(
    net: Autoencoder, x: Tensor, beta: float = 1.0, free_bits: float = 0.0, seed: int = 0, index: Index = None
) -> Tensor:
    """-fit + beta KL in nats, (B,); with beta 1 and no free bits the negative ELBO.

    free_bits: nats per sample that each channel of the code may use for free: a channel with a smaller batch mean
    counts as this value, without a gradient.
    """
    if beta < 0 or free_bits < 0:
        raise SfumatoError(f"beta and free_bits must not be negative, got {beta:g} and {free_bits:g}.")
    code = gaussian_code(net, x)
    fit = decoder_log_prob(net, x, code.sample(_draw(net, x, seed, index)))
    kl = code.kl().reshape(len(x), net.latent_shape[0], -1).sum(2)
    if free_bits:
        kl = torch.where(kl.mean(0) < free_bits, free_bits, kl)
    return beta * kl.sum(1) - fit


def importance_bound(net: Autoencoder, x: Tensor, samples: int, seed: int = 0, index: Index = None) -> Tensor:
    """log (1/k) sum_j p(x | y_j) p(y_j) / q(y_j | x) with k = `samples` draws of y, in nats, (B,)."""
    if samples < 1:
        raise SfumatoError(f"The importance-weighted bound needs at least 1 sample, not {samples}.")
    code, weights = gaussian_code(net, x), []
    for step in range(samples):
        y = code.sample(_draw(net, x, seed, index, step))
        weights.append(decoder_log_prob(net, x, y) + log_normal(y) - code.log_prob(y))
    return torch.logsumexp(torch.stack(weights), 0) - math.log(samples)


class Quantised(NamedTuple):
    """The loss (B,) in nats, and the code that updates the codebook (`VectorQuantiser.learn`)."""

    loss: Tensor
    code: QuantisedCode


def vq_loss(net: Autoencoder, x: Tensor, commitment: float = COMMITMENT) -> Quantised:
    """-log p(x | e) + commitment |f - sg(e)|^2; x normalised (B, *shape). `learn` updates the codebook."""
    code = net.encode(x)
    if not isinstance(code, QuantisedCode):
        raise SfumatoError("vq_loss needs an autoencoder with bottleneck='vq'; for a KL bottleneck use elbo_loss.")
    return Quantised(commitment * code.distance() - decoder_log_prob(net, x, code.value), code)


def amplitude_error(net: Autoencoder, x: Tensor) -> Tensor:
    """mean_f | |F x|_f - |F x_hat|_f | / s, (B,), s the deviation of the decoder, x_hat = decode(E[y | x]).

    F is the orthonormal Fourier transform of samples x (B, *shape), of vectors the identity.

    By Parseval the squared error of F x is that of x, for which the mean over what is uncertain is best, and so too
    small amplitudes; those are compared here without their phases, as in the losses of audio (Yamamoto et al. 2019,
    1910.11480, Eq. 4).
    """
    back = net(x)
    axes = tuple(range(2, x.ndim))
    one, other = (torch.fft.rfftn(v.float(), dim=axes, norm="ortho") if axes else v for v in (x, back))
    scale = (-0.5 * net.log_variance).exp()
    return (_modulus(one) - _modulus(other)).abs().flatten(1).mean(1) * scale


def perceptual_error(net: Autoencoder, x: Tensor, features: Callable[[Tensor], Tensor], units: Any = None) -> Tensor:
    """|phi(x) - phi(x_hat)|^2 / (2 s^2 |phi(x)|^2), (B,), s the deviation of the decoder, x_hat = decode(E[y | x]).

    phi: features (B, ...) of samples (B, *shape), which `units` brings from normalised numbers to those of the data.
    Relative, so that features of any scale weigh as much as the error of the numbers. Source: Johnson et al. 2016
    (1603.08155), Eq. 2.
    """
    one, other = (features(v if units is None else units(v).float()).flatten(1) for v in (x, net(x)))
    share = (one - other).square().sum(1) / one.square().sum(1).clamp_min(1e-12)
    return 0.5 * share * (-net.log_variance).exp()


def _modulus(v: Tensor) -> Tensor:
    """|v|, whose gradient at 0 is 0 too."""
    return (v.real.square() + v.imag.square() + 1e-12).sqrt() if v.is_complex() else v.abs()
