"""What a network may say of each symbol: K numbers, from which log h(k) is had, up to a constant.

h(k) = p(x_i = k | z_j for j != i) is what the other symbols know of one.

    other   log h(k)                                       y itself
    x       log p(k),      p(k) = p(x_i = k | z)           h ~ p / q(z_i | .)
    z       log zeta(k),   zeta(y) = p(z_i = y | z_j, j != i) = sum_k h(k) q(y | k)      h = the inverse of this sum
    ratio   log r(k),      r(y) = zeta(y) / zeta(z_i) = p(z with z_i := y) / p(z)        zeta ~ r, r(z_i) = 1
    rate    log of the reverse rate z_i -> k = R(k -> z_i) r(k), per unit of the level   r = rate / R

A belief says the same in each of these words (`belief.log_prob`, `other`, `zeta`, `ratio`, `rate`), over all symbols of
a noisy state. x and other are one thing at masks alone; of a visible symbol that z_i rules out, x and rate say nothing.
Sources: 2107.03006 (x); 2211.16750 (z); 2310.16834 (ratio); 2205.14987 (rate).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato import registry
from sfumato.errors import SfumatoError, suggest
from sfumato.registry import register
from sfumato.schedule import Time

NAMES = registry.names("row")
_TOLD = 1e-6  # least alpha(1) at which z, ratio and rate still tell symbols of the data apart


@register("row", "other")
def other(process: Any, y: Tensor, z: Tensor, t: Time) -> Tensor:
    """log h = y."""
    return y


@register("row", "x")
def posterior(process: Any, y: Tensor, z: Tensor, t: Time) -> Tensor:
    """log h = y - log q(z_i | .), -inf where z_i rules k out."""
    evidence = process.evidence(z, t, y.dtype)
    return torch.where(evidence > -torch.inf, y - evidence, -torch.inf)


@register("row", "z")
def noisy(process: Any, y: Tensor, z: Tensor, t: Time) -> Tensor:
    """log h from log zeta."""
    return process.unspread(y.softmax(-1), t).clamp_min(torch.finfo(y.dtype).tiny).log()


@register("row", "ratio")
def ratio(process: Any, y: Tensor, z: Tensor, t: Time) -> Tensor:
    """log h from log r, with r(z_i) = 1 whatever the network says of it."""
    own = process.hot(z, y.dtype)[..., : process.states] > 0
    return noisy(process, torch.where(own, 0.0, y), z, t)


@register("row", "rate")
def rate(process: Any, y: Tensor, z: Tensor, t: Time) -> Tensor:
    """log h from log rates."""
    into = process.into(z, t, y.dtype)[..., : process.states].expand_as(y)
    known = into > 0
    log_h = ratio(process, y - torch.where(known, into, 1.0).log(), z, t)
    own = process.hot(z, y.dtype)[..., : process.states] > 0
    return torch.where(known | own, log_h, -torch.inf)


def check(process: Any) -> None:
    """Raise SfumatoError if the process has no such row, or if it would not determine h."""
    name = process.row
    if name not in NAMES and not registry.known("row", name):
        raise SfumatoError(f"A network cannot say {name!r} of a symbol: {suggest(str(name), NAMES)}")
    if name not in ("z", "ratio", "rate"):
        return
    kind, states = type(process).__name__.lower(), process.states
    prior = bool((process.pi[:states] > 0).any())
    if prior and float(process.keep(1.0)) < _TOLD:
        other = "" if process._all_replaced else ", or a schedule that ends above alpha = 0, such as LinearBeta"
        raise SfumatoError(
            f"At t = 1 nothing of the data is left, and the row {name!r} of a {kind} process does not tell symbols "
            f"apart: use row='other'{other}."
        )
    symbols = torch.arange(states)
    jumps = process.into(symbols, 0.5)[..., :states].expand(states, states) + torch.eye(states)
    if name == "rate" and prior and not bool((jumps > 0).all()):
        raise SfumatoError(f"The rates of a {kind} process do not reach all symbols: use another row, such as 'other'.")
