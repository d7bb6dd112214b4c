"""The log-density of a denoiser with an `Energy` network, up to a constant at each noise level.

With y(z) = grad_x E(c_in z) the network's output and (a, b) its row, det = b alpha - a sigma,

    grad log p_t(z) = -eps / sigma = -(alpha y - a z) / (det sigma)
    U_t(z) = (alpha E(c_in z) / c_in - a |z|^2 / 2) / (det sigma),   p_t(z) = exp(-U_t(z)) / Z_t

It costs one call of the network, while `log_prob` integrates an ODE: log p_t(z) - log p_t(z') = U_t(z') - U_t(z).
Source: Salimans and Ho 2021, "Should EBMs model the energy or the score?"; Vincent 2011, Sect. 4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfumato import target
from sfumato.belief import broadcast
from sfumato.conditions import network_inputs
from sfumato.errors import SfumatoError, an
from sfumato.machine import default_cpu
from sfumato.model import Denoiser
from sfumato.nets import Energy
from sfumato.nets.lora import unadapted
from sfumato.schedule import Time, as_time


@default_cpu()
def energy(denoiser: Denoiser, z: Tensor, t: Time, **cond: Any) -> Tensor:
    """U_t(z) = -log p_t(z) + log Z_t, float64 (B,), in nats; its gradient is minus the score of the belief.

    z (B, *shape): normalised states at times t, a number or (B,), with sigma(t) > 0. denoiser: one with a `nets.Energy`
    network (`nets.build(shape, energy=True)`). Only differences at the same t and condition are meaningful.
    Raises SfumatoError for other networks, which have no energy, and at sigma = 0.
    """
    if not isinstance(denoiser, Denoiser):
        raise SfumatoError(f"Only a Denoiser has an energy, not {an(type(denoiser).__name__)}: use log_prob.")
    net: Any = denoiser.net
    if not isinstance(unadapted(net), Energy):
        raise SfumatoError(
            f"energy needs a denoiser with a nets.Energy network, and this one has {an(type(net).__name__)}: "
            "build the network with nets.build(shape, energy=True), or use log_prob."
        )
    t = as_time(t)
    (alpha, sigma), (c_in, level) = denoiser.process.schedule(t), denoiser.scaling(t, z.device)
    if bool((sigma == 0).any()):
        raise SfumatoError("The energy at sigma = 0 is that of the data, which the network does not determine.")
    row = target.row(denoiser.target, denoiser.process.schedule, t, denoiser.sigma_data)
    det = row.b * alpha - row.a * sigma
    if bool((det == 0).any()):
        raise SfumatoError("This target does not determine x at alpha = 0 (zero signal): use a time t < 1.")
    potential = net.energy(broadcast(c_in, z) * z, level.expand(len(z)), **network_inputs(cond, net)).double()
    square = z.double().flatten(1).square().sum(1)
    parts = (alpha / c_in, row.a / 2, det * sigma)
    first, second, divisor = (broadcast(p, potential) for p in parts)
    return (first * potential - second * square) / divisor
