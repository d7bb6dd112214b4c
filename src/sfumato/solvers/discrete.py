"""Ancestral sampling of any process: z_s ~ p(z_s | z_t) under the belief, in equal steps of t.

Symbols are drawn independently: Sohl-Dickstein et al. 2015 (1503.03585), Section 2.2; with the belief in place of x,
Hoogeboom et al. 2021 (2102.05379). For a Gaussian process this is DDPM (Ho et al. 2020, 2006.11239). Of symbols, a
share of the draws can be fresh (`restart`): for masks ReMDM with sigma = restart (1 - alpha_s) (Wang et al. 2025,
2503.00307), which lets a network correct what it has revealed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.process import Symbols
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.lines import Bridge, Jump
from sfumato.solvers.plan import Plan


@dataclasses.dataclass(frozen=True)
class EqualTimes(grids.Grid):
    """t_start + (t_stop - t_start) k / steps."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        return torch.tensor([t_start + (t_stop - t_start) * k / steps for k in range(steps + 1)], dtype=torch.float64)


@final
@dataclasses.dataclass(frozen=True)
class Draw(Jump):
    """`Bridge` of symbols, with fresh draws, and a belief of another temperature."""

    eta: float
    restart: float
    temperature: float
    top_p: float

    def __call__(self, z: Any, belief: Any, s: Tensor | float, noise: Any) -> Any:
        return belief.tempered(self.temperature, self.top_p).to(s, self.eta, noise, self.restart)


class SymbolSolver(Solver):
    """The base class of solvers for symbols alone."""

    @property
    def any_process(self) -> bool:  # type: ignore[override]  # of symbols, some
        return True

    @final
    def require(self, process: Any, kind: type, what: str) -> None:
        """Raise SfumatoError unless the process is of this kind."""
        if not isinstance(process, kind):
            raise SfumatoError(
                f"{what}, and these states are of {type(process).__name__}: use another solver, such as "
                "solvers.Ancestral()."
            )


@register("solver", "ancestral")
@register("solver", "bridge", eta=0.0)
@dataclasses.dataclass(frozen=True)
class Ancestral(Solver):
    """Draw each next state from the belief; one call per step, for any process.

    eta = 1 is the reverse chain (DDPM for numbers, the posterior for symbols), eta = 0 adds the least possible noise
    (DDIM for numbers, the fewest changes for symbols). For symbols alone: restart, the share of draws from q(z_s | x)
    whatever z_t, and temperature and top_p of the belief (`Logits.tempered`).
    """

    any_process: ClassVar[bool] = True
    grid: grids.Grid = dataclasses.field(default_factory=EqualTimes)
    eta: float = 1.0
    restart: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0

    def build(self, b: Builder) -> Plan:
        if (self.restart, self.temperature, self.top_p) != (0, 1, 1):
            return self._of_symbols(b)
        for t in b.nodes[:-1]:
            b.call(t)
            b.jump(Bridge(self.eta, draws=self.eta != 0 or not b.sums))
        return b.plan("Ancestral" if self.eta == 1 else f"Ancestral(eta={self.eta:g})", 1)

    def _of_symbols(self, b: Builder) -> Plan:
        if not isinstance(b.process, Symbols):
            raise SfumatoError(
                "restart, temperature and top_p are for a process of symbols: leave them out for "
                f"{type(b.process).__name__}."
            )
        for t in b.nodes[:-1]:
            b.call(t)
            b.jump(Draw(self.eta, self.restart, self.temperature, self.top_p))
        return b.plan(f"Ancestral(eta={self.eta:g}, restart={self.restart:g})", 1)
