"""The bound on log p(x) of a latent model.

    log p(x) >= E_q [log p(x|y) + log p(y) - log q(y|x)],   log p(y) >= the bound of the denoiser (`bound`)

q is the encoder, N(mean, variance), and p(x|y) the decoder's normal distribution of one variance, of whole numbers the
probability of their cells. Sources: Kingma and Welling 2013 (1312.6114), Eq. 2; Vahdat et al. 2021 (2106.05931), Eq. 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.latent_diffusion import Latent, latent_of
from sfumato.likelihood.measured import Measured
from sfumato.objectives.decoder import cell_nats, cells_of
from sfumato.objectives.vae import decoder_log_prob, gaussian_code

_BATCH = 256


class LatentBound(NamedTuple):
    """The bound as a `Measured`, and its parts in nats, float64 (B,): fit = log p(x|y) in user units, and rate =
    log q(y|x) - log p(y), so that the bound is fit - rate."""

    measured: Measured
    fit: Tensor
    rate: Tensor


@torch.no_grad()
def latent_bound(
    model: Any, x: Tensor, density: Callable[[Any, Tensor], Measured], seed: int, index: Tensor
) -> LatentBound:
    """The bound for x (B, *shape) in user units. density: (denoiser, codes) -> a bound on log p(y).

    One code is drawn for each sample, by (seed, index); `stderr` counts the draws of the denoiser's bound alone.
    """
    latent = _usable(model)
    latent.spec.check(x)
    codec, net, spec = latent.autoencoder, latent.autoencoder.net, latent.autoencoder.spec
    cells, found = cells_of(spec), []
    for part in torch.arange(len(x)).split(_BATCH):
        z = codec.normalise(x[part])
        code = gaussian_code(net, z)
        y = code.sample(noise.normal(seed, index[part], net.latent_shape, noise.BOUND, 0, z.device))
        if cells is None:
            fit = decoder_log_prob(net, z, y).double() + spec.log_jacobian(z.cpu()).to(z.device)
        else:
            log_std = (0.5 * net.log_variance).double().expand_as(z)
            fit = -cell_nats(z.double(), net.decode(y).double(), log_std, cells)
        found.append((y.cpu(), fit.cpu(), code.log_prob(y).double().cpu()))
    y, fit, log_q = (torch.cat(column) for column in zip(*found, strict=True))
    prior = density(latent.inner, y)
    measured = dataclasses.replace(
        prior.shifted(fit - log_q),
        dim=math.prod(codec.shape),
        dequantisation=None if cells is None else "discretised",
        method=f"{prior.method} of the codes, with the terms of the autoencoder",
    )
    return LatentBound(measured, fit, log_q - prior.value)


def _usable(model: Any) -> Latent:
    """The latent model itself. Raises SfumatoError where there is no bound."""
    latent = latent_of(model)
    if latent is not model:
        raise SfumatoError("The bound is that of a latent model itself: leave guidance and other wrappers out.")
    if latent.autoencoder.net.quantiser is not None:
        raise SfumatoError(
            "The codes of a codebook have no density, so that there is no bound: train an autoencoder with "
            "bottleneck='kl'."
        )
    return latent
