"""What a model believes about both ends of a stochastic interpolant.

    z = alpha x + beta x' + gamma zeta
    velocity = alpha' E[x|z] + beta' E[x'|z] + gamma' E[zeta|z],   score = -E[zeta|z] / gamma
    step       z_s = alpha_s x + beta_s x' + sqrt(gamma_s^2 - std^2) zeta + std xi
               std = eta gamma_s sqrt(1 - rho^2),   rho^2 = (beta_s / alpha_s) / (beta_t / alpha_t)

In small steps dz = (velocity - e score) dt + sqrt(2 e) dw backwards in time, 2 e = eta^2 noise^2 on the linear path.
Source: Albergo et al. 2023 (2303.08797), Theorem 2.6 and Corollary 2.18.
"""

from __future__ import annotations

from typing import Any, NoReturn, final

import torch
from torch import Tensor

from sfumato.belief.protocol import broadcast, parts
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.schedule import Time, as_time
from sfumato.state import numbers_like


@final
class Between:
    """E[x|z], E[x'|z] and E[zeta|z], like z (B, *shape); alpha x + beta source + gamma zeta = z.

    process: the interpolant, which knows the path (`path`, `rates`).
    """

    def __init__(self, x: Tensor, source: Tensor, zeta: Tensor, z: Tensor, t: Time, process: Any) -> None:
        self.x, self.source, self.zeta, self.z, self.t, self.process = x, source, zeta, z, as_time(t), process

    @classmethod
    def of_change(cls, change: Tensor, zeta: Tensor, z: Tensor, t: Time, process: Any) -> Between:
        """From E[x - x'|z] and E[zeta|z]: x' = (z - alpha (x - x') - gamma zeta) / (alpha + beta)."""
        alpha, beta, gamma = process.path(t)
        rest = z - broadcast(alpha, z) * change - broadcast(gamma, z) * zeta
        source = rest / broadcast(alpha + beta, z)
        return cls(source + change, source, zeta, z, t, process)

    @property
    def mean(self) -> Tensor:
        """E[x|z]."""
        return self.x

    @property
    def velocity(self) -> Tensor:
        """dz/dt of the ODE; SfumatoError at both ends, where gamma' is infinite."""
        return self._sum(self._inside(self.process.rates(self.t), "velocity"))

    @property
    def score(self) -> Tensor:
        """grad log p_t(z) = -E[zeta|z] / gamma; SfumatoError at both ends, where gamma = 0."""
        return -self.zeta / broadcast(self._inside(self.process.path(self.t), "score")[2], self.zeta)

    def _inside(self, coefficients: Any, what: str) -> Any:
        if bool(((self.t == 0) | (self.t == 1)).any()):
            raise SfumatoError(f"The {what} of an interpolant is finite between its ends alone, at 0 < t < 1.")
        return coefficients

    def _sum(self, coefficients: Any) -> Tensor:
        found = zip(coefficients, (self.x, self.source, self.zeta), strict=True)
        return sum((broadcast(c, part) * part for c, part in found), torch.zeros_like(self.x))

    def to(self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None) -> Tensor:
        """A draw of z_s, s <= t; eta = 0 is a step of the ODE, eta = 1 one with the noise of the bridge itself. More
        noise than a state has is cut. noise: like z or a `Noise` source, needed for eta > 0."""
        (alpha, beta, gamma), (alpha_t, beta_t, _) = self.process.path(s), self.process.path(self.t)
        fresh = 1 - (beta * alpha_t / (alpha * beta_t)).clamp(0, 1)
        share = (eta**2 * fresh).clamp_max(1)
        kept = self._sum((alpha, beta, gamma * torch.sqrt(1 - share)))
        if not eta:
            return kept
        if noise is None:
            raise SfumatoError(f"A step with eta = {eta:g} needs the argument noise.")
        return kept + broadcast(gamma * torch.sqrt(share), kept) * numbers_like(noise, self.z)

    def lerp(self, other: Between, weight: float | Tensor) -> Between:
        """self + weight (other - self) about the same state: guidance."""
        w = broadcast(weight, self.z) if isinstance(weight, Tensor) else weight
        both = ((self.x, other.x), (self.source, other.source), (self.zeta, other.zeta))
        x, source, zeta = (a + w * (b - a) for a, b in both)
        return Between(x, source, zeta, self.z, self.t, self.process)

    def nats(self, x: Tensor) -> NoReturn:
        """SfumatoError: an interpolant has no bound."""
        raise SfumatoError("An Interpolant has no likelihood, since the density of its sources is unknown.")

    def rows(self, index: Tensor | slice) -> Between:
        """The belief about some samples of the batch."""
        t = self.t[index] if self.t.ndim else self.t
        return Between(self.x[index], self.source[index], self.zeta[index], self.z[index], t, self.process)

    def chunk(self, n: int) -> tuple[Between, ...]:
        """The beliefs about n equal parts of the batch."""
        return tuple(self.rows(part) for part in parts(len(self.z), n))
