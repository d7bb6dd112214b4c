"""Symbols that jump by any matrix of rates, such as those of ordinal data, which go to their neighbours.

    q(z_t | z_s) = exp(-R log a) = a^-R,   a = alpha_t / alpha_s,   R(y, z) the rate of y -> z, rows of sum 0

R is scaled so that its slowest mode decays like alpha: for R = 1 pi^T - I this is `Mixing` with a fixed pi. If R is
reversible, pi(y) R(y, z) = pi(z) R(z, y), it is diagonalised once as D^-1 V diag(lambda) V^T D with D = diag sqrt(pi),
and a^-R costs two K x K products for any a; else it is a matrix exponential.
Sources: Austin et al. 2021 (2107.03006), App. A.2, for ordinal data; Campbell et al. 2022 (2205.14987).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.process.mixing import weights_of
from sfumato.process.symbols import Symbols
from sfumato.registry import register
from sfumato.schedule import Time

_MOST = 2048  # symbols: a matrix of all pairs takes 34 MB, and its eigenvalues some seconds


@dataclasses.dataclass(frozen=True)
class Generator(Symbols):
    """The base class: a subclass has `jump_rates`, and `pi` if it knows it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.states > _MOST:
            raise SfumatoError(
                f"A {type(self).__name__.lower()} process has rates between all pairs of symbols, too many of "
                f"{self.states:,} (up to {_MOST:,}): take process='uniform', or 'gaussian' for ordinal data."
            )
        if float(self._decay[1]) < 1e-9 * float(self._decay[-1]):
            raise SfumatoError(
                f"The rates of a {type(self).__name__.lower()} process must lead from every symbol to a common "
                "distribution, but some groups of symbols never meet."
            )

    @property
    @abc.abstractmethod
    def jump_rates(self) -> Tensor:
        """R up to a factor, float64 (K, K); only what is off the diagonal counts."""

    @functools.cached_property
    def pi(self) -> Tensor:
        """The distribution that R leaves as it is: pi R = 0, sum 1."""
        equations = torch.cat((self._closed.mT, torch.ones(1, self.states, dtype=torch.float64)))
        sums = torch.zeros(self.states + 1, 1, dtype=torch.float64)
        sums[-1] = 1
        found = torch.linalg.lstsq(equations, sums, driver="gelsd").solution[:, 0]
        return torch.where(found < 1e-12, 0.0, found)

    @functools.cached_property
    def rates(self) -> Tensor:
        """R, float64 (K, K), with a slowest mode of rate 1."""
        return self._closed / self._decay[1]

    @functools.cached_property
    def _closed(self) -> Tensor:
        """The rates as given, with the diagonal that makes each row sum to 0."""
        away = self.jump_rates * (1 - torch.eye(self.states, dtype=torch.float64))
        return away - torch.diag(away.sum(1))

    @functools.cached_property
    def _decay(self) -> Tensor:
        """The rates at which the modes of `_closed` decay, ascending from 0."""
        return -torch.linalg.eigvals(self._closed).real.sort(descending=True).values

    @functools.cached_property
    def _modes(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(V, lambda, sqrt pi) of a reversible R, else None."""
        root = self.pi.sqrt()
        flow = self.pi[:, None] * self.rates
        if float(root.min()) == 0 or float((flow - flow.mT).abs().max()) > 1e-10 * float(flow.abs().max()):
            return None
        symmetric = root[:, None] * self.rates / root
        value, vector = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
        return vector, torch.cat((value[:-1], torch.zeros(1, dtype=torch.float64))), root

    def _kernel(self, a: Tensor, like: Tensor) -> Tensor:
        """a^-R, float64 (K, K) or (B, K, K)."""
        a = a.to(like.device)
        if self._modes is None:
            log_a = a.clamp_min(1e-30).log()[..., None, None]
            return torch.matrix_exp(-log_a * self.rates.to(like.device)).clamp_min(0)
        vector, value, root = (each.to(like.device) for each in self._modes)
        powers = a[..., None] ** -value
        return ((vector * powers[..., None, :]) @ vector.mT * (root / root[:, None])).clamp_min(0)

    def spread(self, prob: Tensor, t: Time) -> Tensor:
        return times(prob, self._kernel(self.keep(t), prob))

    def unspread(self, zeta: Tensor, t: Time) -> Tensor:
        kernel = self._kernel(self.keep(t), zeta)
        columns = zeta.double().reshape(*kernel.shape[:-2], -1, self.states)
        return torch.linalg.solve(kernel.mT, columns.mT).mT.reshape(zeta.shape).to(zeta)

    def likelihood(self, z: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        a = self.keep(t) / self.keep(s).clamp_min(1e-300)
        return column(self._kernel(a, z), z).to(dtype)

    def into(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        away = self.rates.to(z.device) * (1 - torch.eye(self.states, dtype=torch.float64, device=z.device))
        rate = column(away, z)
        return ((1 - self.keep(t).to(z.device)).reshape(-1, *[1] * z.ndim) * rate).to(dtype)

    def _fewest(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        after, before = self._kernel(self.keep(s), z), self._kernel(self.keep(t), z)
        leave = (1 - after / before.clamp_min(1e-300)).clamp_min(0)  # (x, z)
        gain = (after - before).clamp_min(0)
        gain = gain / gain.sum(-1, keepdim=True).clamp_min(1e-300)  # (x, where to)
        leaving = prob * column(leave, z).to(prob)
        return self.hot(z, prob.dtype) * (1 - leaving.sum(-1, keepdim=True)) + times(leaving, gain)


def times(prob: Tensor, kernel: Tensor) -> Tensor:
    """sum_x p(x) kernel(x, .), for one kernel (K, K) or one per sample (B, K, K)."""
    kernel = kernel.to(prob.dtype)
    if kernel.ndim == 2:
        return prob @ kernel
    return (prob.flatten(1, -2) @ kernel).reshape(*prob.shape[:-1], kernel.shape[-1])


def column(kernel: Tensor, z: Tensor) -> Tensor:
    """kernel(., z), (*z.shape, K)."""
    if kernel.ndim == 2:
        return kernel.mT[z]
    sample = torch.arange(len(z), device=z.device).reshape(-1, *[1] * (z.ndim - 1))
    return kernel.mT[sample, z]


@register("process", "ladder")
@final
@dataclasses.dataclass(frozen=True)
class Ladder(Generator):
    """Ordinal symbols 0 .. states - 1, which step to their neighbours: R(i, i +- 1) = sqrt(pi(i +- 1) / pi(i)).

    weights: pi up to a factor, all above 0, such as the counts in the data; uniform if left out. Far jumps are rare
    near the data, as in the discretised Gaussian of 2107.03006, and the prior is pi for any schedule.
    """

    weights: Sequence[float] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", weights_of(self.weights, self.states))
            if min(self.weights) == 0:
                raise SfumatoError(
                    "The weights of a ladder must all be above 0: symbols beyond a 0 could not be reached."
                )
        super().__post_init__()

    @functools.cached_property
    def pi(self) -> Tensor:
        pi = (
            torch.ones(self.states, dtype=torch.float64)
            if self.weights is None
            else torch.tensor(self.weights).double()
        )
        return pi / pi.sum()

    @functools.cached_property
    def jump_rates(self) -> Tensor:
        up = (self.pi[1:] / self.pi[:-1]).sqrt()
        return torch.diag(up, 1) + torch.diag(1 / up, -1)


@register("process", "rates")
@final
@dataclasses.dataclass(frozen=True)
class Rates(Generator):
    """Symbols 0 .. states - 1 that jump by a matrix of rates of one's own.

    jumps: K rows of K numbers, the rate from each symbol (row) to each other one, up to a factor; the diagonal does not
    count. The prior is the distribution that the jumps leave as it is.
    """

    jumps: Sequence[Sequence[float]] = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        jumps = tuple(tuple(map(float, row)) for row in self.jumps)
        object.__setattr__(self, "jumps", jumps)
        square = len(jumps) == self.states and all(len(row) == self.states for row in jumps)
        away = [rate for i, row in enumerate(jumps) for j, rate in enumerate(row) if i != j]
        if not square or not all(0 <= rate < math.inf for rate in away):
            raise SfumatoError(
                f"The jumps of {self.states} symbols are {self.states} rows of {self.states} rates of at least 0 (off "
                "the diagonal)."
            )
        super().__post_init__()

    @property
    def jump_rates(self) -> Tensor:
        return torch.tensor(self.jumps, dtype=torch.float64)
