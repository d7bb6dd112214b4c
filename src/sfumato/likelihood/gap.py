"""Why the bound lies below log p: the gap as a sum of three divergences, measured against a known distribution.

    E[log p(x) - elbo(x)] = KL(p_1 || N(0, sigma_1^2))                  prior: z_1 still depends on the data
                          + 1/2 int E|E[eps|z] - eps_hat|^2 dlogsnr     path: the model's score is not the true one
                          + E KL(p(x|z_0) || decoder)                   decoder: p(x|z_0) is not normal around x_hat

The second is the divergence between the path measures of two reverse SDEs with the same start (Girsanov): 0 for the
exact model, which makes the bound equal to log p for each sample, up to the ends. `log_prob(method="ode")` has no such
gap: it measures another distribution, that of the probability flow, which for an inaccurate score may be better or
worse. The two distributions agree if the score is that of its own marginals.
Sources: Kingma et al. 2021 (2107.00630), Eq. 11; Song et al. 2021 (2101.09258), Theorem 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.exact.truth import Truth
from sfumato.likelihood.bound import Span, copies, decoder_nats, eps_error
from sfumato.machine import default_cpu
from sfumato.model import Model, compute_dtype
from sfumato.noised import NoisedBatch
from sfumato.objectives.decoder import density_nats
from sfumato.probability_flow import data_scale
from sfumato.process.gaussian import require_numbers

_PRIOR, _DECODER, _LEVEL = 0, 1, 2  # streams under the role BOUND


class Divergence(NamedTuple):
    """A divergence in nats, and its standard error."""

    value: float
    stderr: float


class Gap(NamedTuple):
    """The parts of E[log p(x) - elbo(x)]."""

    prior: Divergence
    path: Divergence
    decoder: Divergence

    @property
    def total(self) -> Divergence:
        return Divergence(math.fsum(p.value for p in self), math.hypot(*(p.stderr for p in self)))


@default_cpu()
@torch.no_grad()
def bound_gap(
    model: Model, truth: Truth, n: int = 1000, steps: int = 64, seed: int = 0, sigma_min: float | None = None
) -> Gap:
    """The gap of a model without a data spec to the distribution `truth`, from n samples of it.

    steps: noise levels per sample. sigma_min as in `log_prob`. Raises SfumatoError for a model with a data spec.
    """
    require_numbers(model, "The gap of a Gaussian bound", "compare log_prob with the exact one")
    if getattr(model, "spec", None) is not None:
        raise SfumatoError("The gap is measured in the units of truth: pass a model without a data spec.")
    span = Span.of(model.process.schedule, data_scale(model), sigma_min)
    x, index = truth.sample(n, seed), torch.arange(n)
    parts = _prior(model, truth, x, index, seed), _path(model, truth, x, index, seed, span, steps)
    return Gap(*(_divergence(each) for each in (*parts, _decoder(model, truth, x, index, seed, span))))


def _divergence(each: Tensor) -> Divergence:
    return Divergence(float(each.mean()), float(each.std() / math.sqrt(len(each))))


def _noised(model: Model, x: Tensor, index: Tensor, seed: int, t: float | Tensor, stream: int) -> NoisedBatch:
    """All samples noised to time t, with the noise of a stream."""
    draws = copies(model, x, index, Conditions(), seed, torch.as_tensor(t).expand(len(x))[:, None], stream)
    return draws.take(draws.index)


def _prior(model: Model, truth: Truth, x: Tensor, index: Tensor, seed: int) -> Tensor:
    """log p_1(z_1) - log N(z_1; 0, sigma_1^2), (n,)."""
    z = _noised(model, x, index, seed, 1.0, _PRIOR).z
    sigma = model.process.schedule.sigma(1.0)
    return truth.log_prob(z, process=model.process, t=1.0) + density_nats(z, sigma.log().expand_as(z))


def _path(model: Model, truth: Truth, x: Tensor, index: Tensor, seed: int, span: Span, steps: int) -> Tensor:
    """1/2 |E[eps|z] - eps_hat|^2 divided by the density of the levels, averaged over `steps` strata, (n,)."""
    total = torch.zeros(len(x), dtype=torch.float64)
    shift = noise.uniform(seed, index, (), noise.BOUND, _LEVEL, dtype=torch.float64)
    for k in range(steps):
        logsnr = span.quantile((k + shift) / steps)
        _, _, z, t, _ = _noised(model, x, index, seed, span.clock.time(logsnr), _LEVEL + 1 + k)
        belief, exact = model(z.to(compute_dtype(model)), t), truth.moments(z, process=model.process, t=t)
        total += 0.5 * eps_error(belief, exact.x, exact.eps, logsnr) / span.density(logsnr) / steps
    return total


def _decoder(model: Model, truth: Truth, x: Tensor, index: Tensor, seed: int, span: Span) -> Tensor:
    """log p(x|z_0) - log of the decoder, (n,), by Bayes' rule: log p(x|z) = log p(x) + log q(z|x) - log p_0(z)."""
    t = model.process.schedule.time(span.high)
    _, eps, z, _, _ = _noised(model, x, index, seed, t, _DECODER)
    sigma = model.process.schedule.sigma(t)
    noised = -density_nats(sigma * eps, sigma.log().expand_as(x))
    posterior = truth.log_prob(x) + noised - truth.log_prob(z, process=model.process, t=t)
    return posterior + decoder_nats(model(z.to(compute_dtype(model)), float(t)), x, eps, span)
