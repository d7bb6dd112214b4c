"""The bound of nonequilibrium thermodynamics for symbols, over T steps of a symbol process, t_i = i / T.

    log p(x) >= K = -(L_T + sum_{i=2}^{T} L_{i-1} + L_0)
    L_T     = KL(q(z_T | x) || pi)
    L_{i-1} = E_{q(z_i | x)} KL(q(z_{i-1} | z_i, x) || p(z_{i-1} | z_i)),   for i = 1 this is L_0 = -E log p(x | z_1)

where p(x) is that of the reverse chain. Its kernels draw symbols independently: averaged over the data, K of the exact
belief lies below the data's own log p by the dependence that these draws lose, which vanishes like 1 / T.
Sohl-Dickstein et al. 2015 (1503.03585), Eq. 13-14; their K is this one with L_0 = H(z_1 | x), from a last kernel that
is not learned (their App. B).
The same sum over Gaussian kernels is the discrete-time VLB (`objectives.vlb`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Logits
from sfumato.conditions import unfolded
from sfumato.errors import SfumatoError
from sfumato.process import Symbols
from sfumato.schedule import Time


class DiscreteModel(Protocol):
    """A model of symbols: it maps a state and a time to a belief."""

    @property
    def process(self) -> Symbols: ...

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Logits: ...


class Bound(NamedTuple):
    """Nats of each sample: prior (B,) is L_T, steps (B, T) is L_0, L_1, .., L_{T-1}."""

    prior: Tensor
    steps: Tensor

    @property
    def nats(self) -> Tensor:
        """K, (B,): in expectation at most log p(x) of the chain."""
        return -(self.prior + self.steps.sum(1))

    @property
    def bits(self) -> Tensor:
        """K in bits, (B,)."""
        return self.nats / math.log(2)


def kl(q: Tensor, p: Tensor) -> Tensor:
    """q log(q / p), summed over all but the first axis, (B,); terms with q = 0 are 0."""
    log_ratio = q.clamp_min(torch.finfo(q.dtype).tiny).log() - p.clamp_min(torch.finfo(p.dtype).tiny).log()
    return (q * log_ratio).flatten(1).sum(1)


def terminal_kl(process: Symbols, x: Tensor) -> Tensor:
    """L_T = KL(q(z_T | x) || pi), float64 (B,): zero if the schedule ends at alpha = 0."""
    return process.prior_kl(x)


def step_kl(model: DiscreteModel, x: Tensor, z: Tensor, s: Time, t: Time, **cond: Any) -> Tensor:
    """KL(q(z_s | z_t, x) || p(z_s | z_t)) at z_t = z, (B,); at s = 0 this is -log p(x | z_t)."""
    return _step_kl(model.process, model(z, t, **unfolded(cond)), x, s)


def _step_kl(process: Symbols, belief: Logits, x: Tensor, s: Time) -> Tensor:
    p = process.bridge(belief, s)
    return kl(process.posterior(belief.z, x, s, belief.t, p.dtype), p)


def nonequilibrium_bound(
    model: DiscreteModel,
    x: Tensor,
    steps: int,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    **cond: Any,
) -> Bound:
    """All terms of K for x int64 (B, *shape), each from one draw of z_i ~ q(z_i | x): unbiased. No gradients.

    Draws depend on (seed, index, i) alone; index defaults to 0 .. B-1.
    """
    require_symbols(model, steps)
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    terms = []
    with torch.no_grad():
        for i in range(1, steps + 1):
            drawn = noise.normal(seed, index, tuple(x.shape[1:]), noise.VALID_NOISE, i, x.device)
            z = model.process.corrupt(x, i / steps, drawn)
            terms.append(step_kl(model, x, z, (i - 1) / steps, i / steps, **cond))
        return Bound(terminal_kl(model.process, x), torch.stack(terms, 1))


def nonequilibrium_loss(
    model: DiscreteModel,
    x: Tensor,
    steps: int,
    u: Tensor | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    share: float = 0.0,
    **cond: Any,
) -> Tensor:
    """An unbiased estimate of -K from one step i = ceil(u T) per sample: L_T + T L_{i-1}, (B,) in nats.

    x: int64 (B, *shape). u: numbers in (0, 1), float64 (B,), by default drawn from (seed, index), like the noise.
    share: lambda of T [L_{i-1} + lambda (-log p(x | z_i))], D3PM's hybrid loss (2107.03006, Eq. 5). p is the posterior
    that follows from what the network says of the other symbols, so that both terms have one minimum.
    """
    require_symbols(model, steps)
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    if u is None:
        u = noise.uniform(seed, index, (), noise.TRAIN_TIME, dtype=torch.float64)
    i = (u.double() * steps).ceil().clamp(1, steps)
    drawn = noise.normal(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, device=x.device)
    z = model.process.corrupt(x, i / steps, drawn)
    belief = model(z, i / steps, **unfolded(cond))
    terms = _step_kl(model.process, belief, x, (i - 1) / steps)
    if share:
        terms = terms + share * belief.nats(x).to(terms)
    return steps * terms + terminal_kl(model.process, x).to(terms)


def require_symbols(model: Any, steps: int) -> None:
    """Raise SfumatoError unless the model's states are symbols and there is at least one step."""
    process = getattr(model, "process", model)
    if not isinstance(process, Symbols):
        raise SfumatoError(f"This bound needs a process of symbols, not {type(process).__name__}: use vlb or log_prob.")
    if steps < 1:
        raise SfumatoError(f"The bound needs at least 1 step, not {steps}.")
