"""The interface of exact distributions, and their optimal denoiser as a model.

For data x of a known distribution and z = alpha x + sigma eps at any level, in float64 and in closed form:

    log p_t(z),   E[x|z],   E[eps|z] = -sigma score,   score = grad log p_t(z),   Cov(x|z),   p(component|z)

Every method takes the noise level as `process=..., t=...` or `alpha=..., sigma=...`, each a number or a tensor (B,);
the default is the data itself (alpha = 1, sigma = 0). `label` (a number or int64 (B,), -1 for any) restricts the data
to one class. Both ends, alpha = 0 and sigma = 0, are exact.
Source: Efron 2011, "Tweedie's formula and selection bias".
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict, Unpack, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate
from sfumato.conditions import Given
from sfumato.errors import SfumatoError
from sfumato.exact.flow import Level, column, follow
from sfumato.process.gaussian import Additive

Number = Tensor | float | int


class At(TypedDict, total=False):
    """The noise level, by `process` and `t` or by `alpha` and `sigma`, and the class, `label`."""

    process: Additive
    t: Number
    alpha: Number
    sigma: Number
    label: Tensor | int | None


class Moments(NamedTuple):
    """E[x|z], E[eps|z] and the score, like z; log p_t(z) (B,); log p(component|z) (B, K). All float64."""

    x: Tensor
    eps: Tensor
    score: Tensor
    log_prob: Tensor
    log_weights: Tensor


class Truth(abc.ABC):
    """A data distribution with all noised quantities known: K components in R^D, with samples of `shape`.

    Subclasses work on flat z (B, D) at a `Level` (B,), with int64 labels (B,), -1 for any class.
    """

    separate = False  # whether every number of a state may have its own noise level

    def __init__(
        self, shape: tuple[int, ...], dim: int, weights: Tensor, labels: Tensor | Sequence[int] | None
    ) -> None:
        """weights (K,): non-negative, normalised to sum 1. labels (K,): their classes, 0, 1, .. by default."""
        weights = torch.as_tensor(weights, dtype=torch.float64)
        labels = torch.arange(len(weights)) if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        if math.prod(shape) != dim:
            raise SfumatoError(f"shape {tuple(shape)} must have {dim} elements.")
        if not bool((weights >= 0).all() and weights.isfinite().all() and weights.sum() > 0):
            raise SfumatoError("weights must be finite, non-negative and not all zero.")
        if labels.shape != weights.shape or bool((labels < 0).any()):
            raise SfumatoError(f"labels must be {len(weights)} non-negative integers, one per component.")
        self.shape, self.dim, self.labels, self.classes = tuple(shape), dim, labels, int(labels.max()) + 1
        self.log_weights = torch.log(weights / weights.sum())

    @property
    @abc.abstractmethod
    def mean(self) -> Tensor:
        """E[x], flat (D,)."""

    @property
    @abc.abstractmethod
    def spread(self) -> float:
        """An approximate upper bound on the data's standard deviation in any direction."""

    @abc.abstractmethod
    def _moments(self, z: Tensor, at: Level, label: Tensor) -> Moments: ...

    @abc.abstractmethod
    def _variance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        """The diagonal of Cov(x|z), (B, D)."""

    @abc.abstractmethod
    def _total_variance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        """tr Cov(x|z), (B,)."""

    @abc.abstractmethod
    def _covariance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        """Cov(x|z), (B, D, D)."""

    @abc.abstractmethod
    def _draw(self, component: Tensor, seed: int, index: Tensor) -> Tensor:
        """Clean samples (n, D), one from the component of each row (n,)."""

    @abc.abstractmethod
    def _flow_alone(self, z: Tensor, start: Level, stop: Level, component: Tensor) -> Tensor:
        """The flow's state (B, D) if the data of row i are component[i] only."""

    # -- quantities at one level ---------------------------------------------------------------------------------

    @final
    def moments(self, z: Tensor, **at: Unpack[At]) -> Moments:
        """All of E[x|z], E[eps|z], score, log p_t(z) and log p(component|z) for z (B, *shape)."""
        m = self._moments(*self._flat(z, at))
        return m._replace(x=self._field(m.x), eps=self._field(m.eps), score=self._field(m.score))

    @final
    def log_prob(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """log p_t(z) in nats, (B,); log p_t(z|label) with a label. Infinite at sigma = 0 without a density."""
        return self._moments(*self._flat(z, at)).log_prob

    @final
    def score(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """grad_z log p_t(z), like z; at sigma = 0 the score of the data."""
        return self._field(self._moments(*self._flat(z, at)).score)

    @final
    def variance(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """Var(x_d|z) for each entry, like z."""
        return self._field(self._variance(*self._flat(z, at)))

    @final
    def total_variance(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """tr Cov(x|z) = sigma^2 / alpha tr(dE[x|z]/dz), (B,): the expected square of the error of E[x|z]."""
        return self._total_variance(*self._flat(z, at))

    @final
    def covariance(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """Cov(x|z), (B, D, D)."""
        return self._covariance(*self._flat(z, at))

    @final
    def responsibilities(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """p(component|z), (B, K)."""
        return self._moments(*self._flat(z, at)).log_weights.exp()

    @final
    def classify(self, z: Tensor, **at: Unpack[At]) -> Tensor:
        """log p(class|z), (B, classes): the noisy classifier of classifier guidance (2105.05233)."""
        log_weights = self._moments(*self._flat(z, at)).log_weights
        owner = self.labels.to(z.device)
        return torch.stack([torch.logsumexp(log_weights[:, owner == c], -1) for c in range(self.classes)], -1)

    # -- samples -------------------------------------------------------------------------------------------------

    @final
    def sample(self, n: int, seed: int = 0, first: int = 0, **at: Unpack[At]) -> Tensor:
        """z = alpha x + sigma eps, (n, *shape) float64. Row i is a function of (seed, first + i) alone."""
        return self.labelled(n, seed, first, **at)[0]

    @final
    def labelled(self, n: int, seed: int = 0, first: int = 0, **at: Unpack[At]) -> tuple[Tensor, Tensor]:
        """The samples of `sample` and the class of each, int64 (n,)."""
        index = torch.arange(first, first + n)
        level, label = self._level(n, index.device, at), self._label(n, index.device, at)
        component = self._components(seed, index, label)
        x = self._draw(component, seed, index)
        eps = noise.normal(seed, index, (self.dim,), noise.DATA, step=_NOISE, dtype=torch.float64)
        z = column(level.alpha) * x + column(level.sigma) * eps
        return self._field(z), self.labels[component]

    @final
    def mmse(self, n: int, seed: int = 0, **at: Unpack[At]) -> tuple[float, float]:
        """E |x - E[x|z]|^2 = E tr Cov(x|z), the minimum of any denoising loss: mean of n draws and its standard error.

        With it d I(x; z) / d snr = mmse / 2, snr = alpha^2 / sigma^2 (Guo, Shamai and Verdu 2005, Eq. 22).
        """
        total = self.total_variance(self.sample(n, seed, **at), **at)
        return float(total.mean()), float(total.std() / math.sqrt(n))

    # -- the probability-flow ODE --------------------------------------------------------------------------------

    @final
    def flow(
        self,
        z: Tensor,
        t: Number,
        s: Number,
        process: Additive,
        label: Tensor | int | None = None,
        tol: float = 1e-13,
    ) -> Tensor:
        """z_s on the probability-flow ODE through z (B, *shape) at t, by `flow_between`; t, s: numbers or (B,)."""
        return self.flow_between(z, process.schedule(t), process.schedule(s), label, tol)

    @final
    def flow_between(
        self,
        z: Tensor,
        start: tuple[Number, Number],
        stop: tuple[Number, Number],
        label: Tensor | int | None = None,
        tol: float = 1e-13,
    ) -> Tensor:
        """The state at the level stop = (alpha, sigma) on the probability-flow ODE through z (B, *shape) at start.

        Closed form for rows with one component, z_s = alpha_s m + S_s S_t^{-1} (z - alpha_t m) with
        S = sqrt(alpha^2 C + sigma^2); others are integrated with an error below `tol` per step. No gradients.
        """
        flat, begin, labels = self._flat(z, {"alpha": start[0], "sigma": start[1], "label": label})
        end = self._level(len(flat), flat.device, {"alpha": stop[0], "sigma": stop[1]})
        with torch.no_grad():
            out, alone = torch.empty_like(flat), self._alone(labels)
            closed, rest = torch.nonzero(alone >= 0)[:, 0], torch.nonzero(alone < 0)[:, 0]
            if len(closed):
                out[closed] = self._flow_alone(flat[closed], _rows(begin, closed), _rows(end, closed), alone[closed])
            if len(rest) and begin.alpha.ndim > 1:
                raise SfumatoError(
                    "The exact flow of a mixture needs one noise level a sample: take one component, or many steps."
                )
            if len(rest):
                out[rest] = self._integrated(flat[rest], _rows(begin, rest), _rows(end, rest), labels[rest], tol)
        return self._field(out)

    @final
    def consistency(
        self, z: Tensor, t: Number, process: Additive, label: Tensor | int | None = None, tol: float = 1e-13
    ) -> Tensor:
        """f(z, t) = the flow's state at t = 0, the optimum of consistency training (2303.01469, Eq. 4)."""
        return self.flow(z, t, 0.0, process, label, tol)

    def _integrated(self, z: Tensor, start: Level, stop: Level, label: Tensor, tol: float) -> Tensor:
        def read(z: Tensor, alpha: Tensor, sigma: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            labels = label[rows].expand(z.shape[:-1]).reshape(-1)
            m = self._moments(z.reshape(-1, self.dim), Level(alpha.reshape(-1), sigma.reshape(-1)), labels)
            return m.x.reshape(z.shape), m.eps.reshape(z.shape)

        return follow(read, z, start, stop, self.mean.to(z.device), self.spread or 1.0, tol)

    # -- the model for samplers ----------------------------------------------------------------------------------

    @final
    def denoiser(self, process: Additive) -> ExactDenoiser:
        """The optimal denoiser of this distribution under a process, usable like any other model."""
        return ExactDenoiser(self, process)

    # -- the components of a label -------------------------------------------------------------------------------

    def _allowed(self, label: Tensor) -> Tensor:
        """Which components have each row's label, bool (B, K); all for label -1."""
        return (label[:, None] < 0) | (label[:, None] == self.labels.to(label.device))

    def _log_prior(self, label: Tensor) -> Tensor:
        """log p(component|label), (B, K)."""
        return torch.log_softmax(torch.where(self._allowed(label), self.log_weights.to(label.device), -torch.inf), -1)

    def _alone(self, label: Tensor) -> Tensor:
        """The component of each row if its label has only one, else -1: int64 (B,)."""
        values, where = torch.unique(label, return_inverse=True)
        possible = self._allowed(values) & (self.log_weights > -torch.inf).to(label.device)
        return torch.where(possible.sum(-1) == 1, possible.long().argmax(-1), -1)[where]

    def _components(self, seed: int, index: Tensor, label: Tensor) -> Tensor:
        """Draw a component for each row, int64 (n,), by inverting the cumulative weights."""
        u = noise.uniform(seed, index, (), noise.DATA, step=_COMPONENT, dtype=torch.float64)
        values, where = torch.unique(label, return_inverse=True)
        drawn = torch.empty_like(label)
        for i, prior in enumerate(self._log_prior(values).exp()):
            last = torch.nonzero(prior)[-1, 0]  # rounding of the sum must not reach a component of weight 0
            drawn[where == i] = torch.searchsorted(prior.cumsum(0), u[where == i], right=True).clamp_max(last)
        return drawn

    # -- the caller's arguments as rows --------------------------------------------------------------------------

    def _field(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.shape)

    def _flat(self, z: Tensor, at: At) -> tuple[Tensor, Level, Tensor]:
        if tuple(z.shape[1:]) != self.shape:
            raise SfumatoError(f"z has shape {tuple(z.shape)}; expected (batch, *{self.shape}).")
        flat = z.to(torch.float64).reshape(len(z), self.dim)
        return flat, self._level(len(z), z.device, at), self._label(len(z), z.device, at)

    def _level(self, batch: int, device: torch.device, at: At) -> Level:
        if ("process" in at) != ("t" in at) or "process" in at and ("alpha" in at or "sigma" in at):
            raise SfumatoError("Pass the noise level as process=... and t=..., or as alpha=... and sigma=...")
        pair = at["process"].schedule(at["t"]) if "process" in at else (at.get("alpha", 1.0), at.get("sigma", 0.0))
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64, device=device) for v in pair)
        if alpha.ndim < 2:
            return Level(alpha.expand(batch), sigma.expand(batch))
        if not self.separate:
            raise SfumatoError(
                f"{type(self).__name__} knows one noise level a sample, and this process has one a coefficient: take a "
                "GaussianMixture of the coefficients with diagonal covariances."
            )
        return Level(alpha.flatten(1).expand(batch, -1), sigma.flatten(1).expand(batch, -1))

    def _label(self, batch: int, device: torch.device, at: At) -> Tensor:
        value = at.get("label")
        label = torch.as_tensor(-1 if value is None else value, dtype=torch.int64, device=device).expand(batch)
        if bool(((label < -1) | (label >= self.classes)).any()):
            raise SfumatoError(f"Labels must lie between 0 and {self.classes - 1}, or be -1 for any class.")
        return label


# Streams under the role noise.DATA: the component, the position within it, and the noise.
_COMPONENT, _POSITION, _NOISE = 0, 1, 2


def draw_position(dim: int, seed: int, index: Tensor) -> Tensor:
    """Standard normal numbers (n, D), float64."""
    return noise.normal(seed, index, (dim,), noise.DATA, step=_POSITION, dtype=torch.float64)


def _rows(level: Level, rows: Tensor) -> Level:
    return Level(level.alpha[rows], level.sigma[rows])


@final
class ExactDenoiser:
    """The exact E[x|z] as a model: `model(z, t, label=None) -> Estimate` with x and eps in float64."""

    exact = True  # E[x|z] is smooth enough for high-order solvers (`solvers.default`)

    def __init__(self, truth: Truth, process: Additive) -> None:
        self.truth, self.process, self.shape = truth, process, truth.shape

    def __call__(self, z: Tensor, t: Number, /, label: Tensor | Given | int | None = None) -> Estimate:
        label = label.values if isinstance(label, Given) else label
        at: At = {"process": self.process, "t": t, "label": label}
        m, truth = self.truth.moments(z, **at), self.truth
        z = z.to(torch.float64)
        return Estimate(
            z, t, self.process.schedule, x=m.x, eps=m.eps, variance=lambda: truth.variance(z, **at),
            sigma_data=self.process.sigma_data,
        )  # fmt: skip
