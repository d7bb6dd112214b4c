"""Loss weights as functions of logsnr: loss = 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr.

In terms of logsnr a weight does not depend on the schedule, the target or the time density; constant factors are
arbitrary. Published weights of a plain loss include the density that they were published with: uniform t on the cosine
schedule for p2, min_snr and truncated_snr. snr = exp(logsnr). Source: Kingma and Gao 2023 (2303.00848), Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.objectives import times
from sfumato.registry import Named, make, register

Weight = Callable[[Tensor], Tensor]


@register("weight", "elbo")
@register("weight", "likelihood")
def elbo() -> Weight:
    """w = 1: the evidence lower bound (2107.00630); likelihood weighting g^2 (2101.09258)."""
    return torch.ones_like


likelihood = elbo  # g^2 |s - s_hat|^2 in t is |eps - eps_hat|^2 in logsnr


@register("weight", "ncsn")
def ncsn() -> Weight:
    """w = 1: sigma^2 |s - s_hat|^2 with uniform log sigma has the weight of the bound (1907.05600, 2006.09011)."""
    return torch.ones_like


@register("weight", "eps-simple")
def eps_simple() -> Weight:
    """w = sech(logsnr/2): DDPM's simple loss under the cosine schedule (2006.11239, 2102.09672)."""
    return lambda lam: 1 / torch.cosh(lam / 2)


@register("weight", "v")
@register("weight", "flow")
def v() -> Weight:
    """w = exp(-logsnr/2): v-prediction with cosine, flow matching with uniform t (2202.00512, 2210.02747)."""
    return lambda lam: torch.exp(-lam / 2)


flow = v  # the same weight under two names


@register("weight", "x-simple")
def x_simple() -> Weight:
    """w = exp(-logsnr) sech(logsnr/2): plain x-prediction with cosine."""
    return lambda lam: torch.exp(-lam) / torch.cosh(lam / 2)


@register("weight", "indi")
def indi() -> Weight:
    """w = exp(-logsnr) sech^2(logsnr/4): plain x-prediction on the linear path, uniform t (2303.11435)."""
    return lambda lam: torch.exp(-lam) / torch.cosh(lam / 4) ** 2


# the registered name is for data of standard deviation 1, like the density "edm"
@register("weight", "edm", sigma_data=1.0, mean=-1.2 + math.log(2))
def edm(sigma_data: float = 0.5, mean: float = -1.2, std: float = 1.2) -> Weight:
    """w = N(logsnr; -2 mean, 4 std^2) (exp(-logsnr) + sigma_data^2) / sigma_data^2 (2206.00364, Table 1)."""
    density = times.NormalLogSNR(-2 * mean, 2 * std)
    return lambda lam: density.pdf(lam) * (torch.exp(-lam) + sigma_data**2) / sigma_data**2


@register("weight", "p2")
def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """w = sech(logsnr/2) / (k + snr)^gamma: perception-prioritised eps-prediction with cosine (2204.00227)."""
    _positive(p2=k)
    return lambda lam: 1 / torch.cosh(lam / 2) / (k + lam.exp()) ** gamma


@register("weight", "min-snr")
def min_snr(gamma: float = 5.0) -> Weight:
    """w = sech(logsnr/2) min(1, gamma / snr): |x - x_hat|^2 min(snr, gamma) with cosine (2303.09556)."""
    _positive(min_snr=gamma)
    return lambda lam: (gamma * torch.exp(-lam)).clamp_max(1.0) / torch.cosh(lam / 2)


@register("weight", "soft-min-snr")
def soft_min_snr(gamma: float = 4.0) -> Weight:
    """w = sech(logsnr/2) gamma / (snr + gamma): min-SNR without the kink (2401.11605); p2(1, gamma)."""
    return p2(1.0, gamma)


@register("weight", "truncated-snr")
def truncated_snr() -> Weight:
    """w = sech(logsnr/2) max(1, 1 / snr): max(|x - x_hat|^2, |eps - eps_hat|^2) with cosine (2202.00512, Sec. 4)."""
    return lambda lam: torch.exp(-lam).clamp_min(1.0) / torch.cosh(lam / 2)


@register("weight", "sd3-logit-normal")
def sd3_logit_normal(mean: float = 0.0, std: float = 1.0) -> Weight:
    """w = N(logsnr; -2 mean, 4 std^2) (1 + exp(-logsnr/2))^2: rectified flow, logit-normal t (2403.03206, Eq. 19)."""
    return _rectified(times.NormalLogSNR(-2 * mean, 2 * std))


@register("weight", "sd3-mode")
def sd3_mode(s: float = 1.29) -> Weight:
    """Rectified flow with mode sampling (2403.03206, Eq. 20)."""
    return _rectified(times.Mode(s))


@register("weight", "sd3-cosmap")
def sd3_cosmap() -> Weight:
    """w = sech(logsnr/2) (1 + exp(-logsnr/2))^2 / (2 pi): rectified flow with CosMap (2403.03206, Eq. 21)."""
    return _rectified(times.CosMap())


@register("weight", "sigmoid")
def sigmoid(bias: float = 0.0) -> Weight:
    """w = sigmoid(bias - logsnr): VDM++ and SiD2 (2303.00848, 2410.19324); monotone, so an ELBO with augmentation."""
    return lambda lam: torch.sigmoid(bias - lam)


def _rectified(density: times.LogSNRLaw) -> Weight:
    """p (1 + exp(-logsnr/2))^2: |u - u_hat|^2 = |eps - eps_hat|^2 / alpha^2 on the linear path."""
    return lambda lam: density.pdf(lam) * (1 + torch.exp(-lam / 2)) ** 2


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise SfumatoError(f"The weight {name} needs a positive number, got {value:g}.")


NAMED: Mapping[str, Callable[..., Weight]] = Named("weight")


def chosen(weight: Weight | str | None) -> Weight | None:
    """A weight as it is, or that of a name; None for None and for "plain", the target's plain squared error."""
    if not isinstance(weight, str):
        return weight
    return None if weight == "plain" else named(weight)


def named(word: str) -> Weight:
    """The weight of a name with optional arguments: "sigmoid", "sigmoid(bias=-2)", "p2(0.5)"."""
    weight: Weight = make("weight", word)
    if not callable(weight):
        raise SfumatoError(f"The weight {word!r} makes {weight!r:.60}: register a function that returns w(level).")
    return weight
