"""Couplings: which source a sample of a batch is trained with, where data and sources are not paired.

    independent   a random order of the batch's sources
    exact         the order with the least mean |x - x'|^2: optimal transport between the two halves of the batch
    entropic      for each sample a source drawn from the plan that minimises E|x - x'|^2 / 2 - noise^2 entropy; with
                  the noise of an interpolant or a bridge, that of the Schroedinger bridge

A coupling that looks at x must stay within the classes: over all of them it would give each class the sources near it,
where sampling gives it any, and the law of the class would be wrong (Cheng and Schwing 2025, 2503.10636). In many
dimensions a batch says little of the best plan: in 784 one of 256 closes a tenth of the gap, in 64 a third.
Sources: Pooladian et al. 2023 (2304.14772) and Tong et al. 2023 (2302.00482); Cuturi 2013 (1306.0895).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, an
from sfumato.noise import Noise
from sfumato.objectives.losses import Denoising
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.process import source_of
from sfumato.registry import make, register

_ROUNDS, _CLOSE = 500, 1e-4  # of Sinkhorn's iterations, and the error of their marginals
_SWEEPS, _BLUR = 10, 0.03  # of those before an assignment, and their noise over the mean cost


class Coupling(abc.ABC):
    """(x (B, D), sources (B, D), u (B,) uniform in (0, 1)) -> the row of the source of each x, int64 (B,).

    looks: whether it looks at x, and not at u alone; draws: whether it looks at u, which is not drawn otherwise.
    """

    looks: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, x: Tensor, sources: Tensor, u: Tensor) -> Tensor: ...


@register("coupling", "independent")
@final
@dataclasses.dataclass(frozen=True)
class Independent(Coupling):
    """A random order."""

    looks: ClassVar[bool] = False

    def __call__(self, x: Tensor, sources: Tensor, u: Tensor) -> Tensor:
        return u.argsort()


@register("coupling", "exact")
@final
@dataclasses.dataclass(frozen=True)
class Exact(Coupling):
    """The order with the least mean squared distance (needs scipy)."""

    draws: ClassVar[bool] = False

    def __call__(self, x: Tensor, sources: Tensor, u: Tensor) -> Tensor:
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise SfumatoError(
                "The exact coupling needs the library scipy: pip install 'sfumato[metrics]', or take another one."
            ) from None
        cost = torch.cdist(x.double(), sources.double()).square().cpu().numpy()
        return torch.from_numpy(linear_sum_assignment(_reduced(cost))[1])


def _reduced(cost: np.ndarray) -> np.ndarray:
    """The costs (B, B) less potentials of rows and columns, after which the best order is the same and found in half
    the time: those of a few of Sinkhorn's iterations, of which most pairs of the best order cost about nothing."""
    least = _least(cost)
    blur = _BLUR * least.mean()
    if blur > 0:
        kernel, columns = np.exp(least / -blur), np.ones(len(least))
        for _ in range(_SWEEPS):
            rows = 1 / (kernel @ columns)
            columns = 1 / (rows @ kernel)
        least -= blur * (np.log(rows)[:, None] + np.log(columns))
    return _least(least)


def _least(cost: np.ndarray) -> np.ndarray:
    """The costs less the smallest of each column, and then of each row."""
    cost = cost - cost.min(0)
    cost -= cost.min(1, keepdims=True)
    return cost


@register("coupling", "entropic")
@final
@dataclasses.dataclass(frozen=True)
class Entropic(Coupling):
    """Draws from the plan of Sinkhorn's iterations, with the noise of a Brownian motion from x' to x."""

    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise SfumatoError(f"The noise of an entropic coupling must be above 0, not {self.noise!r:.60}.")

    def plan(self, x: Tensor, sources: Tensor) -> Tensor:
        """log p(x', x), float64 (B, B'), with uniform marginals."""
        kernel = -torch.cdist(x.double(), sources.double()).square() / (2 * self.noise**2)
        rows, columns = (-math.log(count) for count in kernel.shape)
        a, b = kernel.new_zeros(len(kernel), 1), kernel.new_zeros(1, kernel.shape[1])
        for _ in range(_ROUNDS):
            a = rows - torch.logsumexp(kernel + b, 1, keepdim=True)
            off = torch.logsumexp(kernel + a, 0, keepdim=True) + b - columns
            b = b - off
            if float(off.abs().max()) < _CLOSE:
                break
        return kernel + a + b

    def __call__(self, x: Tensor, sources: Tensor, u: Tensor) -> Tensor:
        total = self.plan(x, sources).softmax(1).cumsum(1)
        found = torch.searchsorted(total, u.to(total)[:, None] * total[:, -1:])[:, 0]
        return found.clamp_max(len(sources) - 1)


def coupled(coupling: Coupling, name: str, x: Tensor, cond: Conditions, source: Noise) -> Conditions:
    """The conditions of a batch with the sources, the condition `name`, in the order of a coupling, within classes.

    Samples without a label are a class of their own. Raises SfumatoError for a coupling that looks at x where there are
    other conditions than labels, which it does not know.
    """
    others = [each for each in cond if each != name and not cond.given(each).is_label]
    if others and coupling.looks:
        raise SfumatoError(
            f"A coupling of x with its sources would depend on the condition {others[0]!r}, and samples of one value "
            "would start from other sources than in training: take the independent one."
        )
    given, u = cond.given(name), source.uniform() if coupling.draws else torch.zeros(len(x))
    x, sources, device = x.flatten(1), given.values.flatten(1), given.values.device
    classes = _classes(cond, name)
    if classes is None:
        order = coupling(x, sources, u).to(device)
    else:
        order = torch.arange(len(x), device=device)
        for rows in classes:
            rows = rows.to(device)
            order[rows] = rows[coupling(x[rows], sources[rows], u[rows.cpu()]).to(device)]
    return Conditions({**{each: cond.given(each) for each in cond}, name: given.rows(order)})


def _classes(cond: Conditions, name: str) -> list[Tensor] | None:
    """The rows of each set of labels; None without labels."""
    labels = [cond.given(each).values for each in cond if each != name and cond.given(each).is_label]
    if not labels:
        return None
    which = torch.unique(torch.stack(labels, 1), dim=0, return_inverse=True)[1]
    return [torch.nonzero(which == k)[:, 0] for k in range(int(which.max()) + 1)]


@register("loss", "coupled")
@final
class Coupled(Denoising):
    """`Denoising` of a process of pairs whose sources belong to no sample: each batch is coupled anew.

    coupling: "exact" (optimal transport within the batch and its classes), "entropic(noise=1)" or "independent".
    """

    def __init__(
        self, times: TimeDensity, weight: Weight | None, seed: int, coupling: Coupling | str = "exact"
    ) -> None:
        super().__init__(times, weight, seed)
        self.coupling: Coupling = make("coupling", coupling)

    def _errors(self, model: Any, batch: Any, times: TimeDensity) -> Tensor:
        drawn = Noise(self.seed, batch.index, noise.TRAIN_NOISE).fold("coupling")
        cond = coupled(self.coupling, str(source_of(model.process)), batch.x, batch.cond, drawn)
        return super()._errors(model, dataclasses.replace(batch, cond=cond), times)

    def levels(self) -> None:
        """None: held-out samples, too, are coupled."""

    def suits(self, model: Any) -> None:
        super().suits(model)
        if source_of(model.process) is None:
            raise SfumatoError(
                f"Sources are coupled for a process of pairs, such as rectified-flow, and "
                f"{an(type(model.process).__name__)} has none."
            )
