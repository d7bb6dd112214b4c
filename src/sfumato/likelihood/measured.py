"""A measured log-likelihood: its value and estimates of its errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, counted
from sfumato.intervals import student_quantile

FIGURES = ("stderr", "solver_error", "prior_mismatch", "truncation", "prior", "diffusion", "reconstruction")
DEQUANTISATIONS = {"uniform": "uniform dequantisation", "discretised": "discretised decoder"}
WHOLE = DEQUANTISATIONS | {"symbols": "of symbols"}  # how integers get a probability, in words
_DOUBTFUL = 0.5  # nats a number: corrections at the ends of the flow that exceed this are errors of the model
_PRIOR_SAMPLES = 10  # shrinks the pooled skewness like this many extra samples without skewness


@dataclasses.dataclass(frozen=True)
class Measured:
    """log p(x) of B samples, float64 (B,) each, in nats and the user's units; None for what a method cannot measure.

    value: the estimate, a lower bound if `bound`. stderr: its standard error from k independent estimates (the probes
    of the trace, or the replicates of a bound); 0 for an exact trace. third: the third central moment of a single
    estimate, with which `interval` corrects for skewness.
    method: in words; dim: the dimension of a sample; numbers: of the present values of each, int64 (B,), where some
    lack values (`present`), whose log p is meant; probes: k, 0 for an exact trace; steps: of the ODE, levels per
    replicate of a bound, or steps of the chain. dequantisation: "uniform" for u ~ U(-1/2, 1/2) added to integers,
    "discretised" for probabilities of their cells, "symbols" for symbols; None for real-valued data.

    For the ODE, whose value includes prior_mismatch:
    solver_error: the change of value when the number of steps is halved, an upper limit of the solver's error.
    prior_mismatch: the gain from starting the flow at the distribution of the noised data instead of N(0, sigma(1)^2).
    truncation: how much lower log p of x with the least noise, where the flow starts, would be, if the model's eps is
    a score; `value` already accounts for it. sigma_min: the sigma/alpha where the flow starts.

    For the variational bound, value = -(prior + diffusion + reconstruction); the first two have non-negative
    expectations, as has the last except for real-valued data, where it is a density's:
    prior: KL(q(z_1|x) || N(0, sigma(1)^2)). diffusion: 1/2 int E|eps - E[eps|z]|^2 dlogsnr. reconstruction:
    -log p(x|z) at the least noise. by_level: diffusion split at the K + 1 increasing logsnr `levels`, (B, K).
    """

    value: Tensor
    stderr: Tensor
    third: Tensor
    solver_error: Tensor | None
    prior_mismatch: Tensor | None
    truncation: Tensor | None
    method: str
    dim: int
    probes: int
    steps: int
    dequantisation: str | None = None
    bound: bool = False
    prior: Tensor | None = None
    diffusion: Tensor | None = None
    reconstruction: Tensor | None = None
    by_level: Tensor | None = None
    levels: Tensor | None = None
    sigma_min: float | None = None
    numbers: Tensor | None = None

    def doubts(self) -> list[str]:
        """Where an ODE's value cannot be trusted, one sentence for each end of the flow."""
        found = []
        lost, mismatch = (
            0.0 if figure is None else float(figure.abs().median()) / self.dim
            for figure in (self.truncation, self.prior_mismatch)
        )
        if lost > _DOUBTFUL and self.sigma_min is not None:
            advised = self.sigma_min * math.sqrt(lost / (_DOUBTFUL / 2))
            found.append(
                f"This log p cannot be trusted near the data: at sigma/alpha = {self.sigma_min:.2g}, where the flow "
                f"starts, the model's noise prediction is off by {lost * self.dim:.2g} nats in the median sample. Pass "
                f"sigma_min={advised:.2g} (--sigma-min) for the log p of data with that much noise, use method='elbo', "
                "which is a bound in any case, or train with target v or F."
            )
        if mismatch > _DOUBTFUL:
            found.append(
                f"This log p cannot be trusted near the noise: the correction for the prior is "
                f"{mismatch * self.dim:.2g} nats in the median sample, and is of first order. Use a schedule with a "
                "smaller alpha(1) / sigma(1), or method='elbo'."
            )
        return found

    @property
    def uncorrected(self) -> Tensor:
        """value without prior_mismatch, (B,): the log-density of the model started at N(0, sigma(1)^2), normalised."""
        return self.value if self.prior_mismatch is None else self.value - self.prior_mismatch

    @property
    def figures(self) -> dict[str, Tensor]:
        """All other quantities that this method measured, name -> (B,)."""
        figures = {name: getattr(self, name) for name in FIGURES}
        return {name: figure for name, figure in figures.items() if figure is not None}

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 p(x) / D, (B,), for integer data only, where it is an upper bound on the bits of a lossless code.

        p is `uncorrected`, since only a normalised distribution bounds a code.
        Source: Theis et al. 2015 (1511.01844), Eq. 5.
        """
        if self.dequantisation is None:
            raise SfumatoError(
                "Bits per dimension are for data declared discrete (integer dtype); for others use nats: value."
            )
        return bits_per_dim(self.uncorrected, self.dim if self.numbers is None else self.numbers)

    @property
    def skewness(self) -> float:
        """The skewness of single-probe estimates, pooled over the samples and shrunk to 0 if these are few."""
        cubes = (self.stderr * math.sqrt(self.probes)).pow(3).sum()
        return float(self.third.sum() / cubes) * len(self) / (len(self) + _PRIOR_SAMPLES) if float(cubes) > 0 else 0.0

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """(low, high), each (B,): value - T stderr at the two quantiles of T = (mean - truth) / stderr.

        T is Student's t of k - 1 degrees of freedom after Hall's cubic transformation, which removes the skewness:
        a = skewness / sqrt(k) k / (k + 4),  T(q) = 3/a ((1 + a (q - a/6))^(1/3) - 1). It excludes the solver's error.
        Source: Hall 1992, "On the removal of skewness by transformation"; the factor k / (k + 4), for the skewness that
        Student's quantile already covers, keeps the coverage for sums of squares in 1 to 16 directions within 94.5 to
        98 % at 95 %.
        """
        if not 0 < level < 1:
            raise SfumatoError(f"The level of an interval must lie between 0 and 1, got {level:g}.")
        if not self.probes:
            return self.value.clone(), self.value.clone()
        q, k = student_quantile((1 + level) / 2, self.probes - 1), self.probes
        a = self.skewness * math.sqrt(k) / (k + 4)
        low, high = (_unskewed(t, a) for t in (-q, q))
        return self.value - high * self.stderr, self.value - low * self.stderr

    @property
    def sizes(self) -> str:
        """How many numbers the samples have, in words."""
        if self.numbers is None:
            return str(self.dim)
        least, most = int(self.numbers.min()), int(self.numbers.max())
        return str(most) if least == most else f"{least} to {most}"

    def mean(self) -> tuple[float, float]:
        """The mean over the samples, and its standard error as an estimate of E log p(x)."""
        n = len(self.value)
        return float(self.value.mean()), float(self.value.std() / math.sqrt(n)) if n > 1 else math.inf

    def shifted(self, nats: Tensor) -> Measured:
        """The same measurement in other units: value + nats, of each sample."""
        rest = None if self.reconstruction is None else self.reconstruction - nats
        return dataclasses.replace(self, value=self.value + nats, reconstruction=rest)

    def __len__(self) -> int:
        return len(self.value)

    def __str__(self) -> str:
        value, error = self.mean()
        sign = ">=" if self.bound else "="
        parts = [
            f"log p {sign} {value:.6g} +- {error:.2g} nats ({counted(len(self), 'sample')} of {self.sizes} numbers; "
            f"{self.method})"
        ]
        if self.dequantisation is not None:
            parts.append(f"{float(self.bits_per_dim.mean()):.5g} bits/dim, {WHOLE[self.dequantisation]}")
        for name, figure in self.figures.items():
            parts.append(f"{name} {float(figure.square().mean().sqrt()):.2g}")
        return ", ".join(parts)


def bits_per_dim(log_prob: Tensor, dim: int | Tensor) -> Tensor:
    """-log p / (D log 2), log p in nats, in units where neighbouring integers are 1 apart."""
    return -log_prob / (dim * math.log(2))


def _unskewed(q: float, a: float) -> float:
    """T with T + a (T^2 / 3 + 1/6) + a^2 T^3 / 27 = q."""
    return q if abs(a) < 1e-6 else 3 / a * (math.cbrt(1 + a * (q - a / 6)) - 1)


def gather(parts: list[Measured], dequantisation: str | None) -> Measured:
    """Concatenate the measurements of batches, and set their dequantisation."""
    every = ("value", "third", "by_level", "numbers", *FIGURES)
    names = [name for name in every if getattr(parts[0], name) is not None]
    joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    return dataclasses.replace(parts[0], dequantisation=dequantisation, **joined)


def pooled(each: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, standard error, third central moment of one) of k independent estimates (B, k), each (B,)."""
    value, k = each.mean(1), each.shape[1]
    deviation = each - value[:, None]
    stderr = (deviation.square().sum(1) / max(k * (k - 1), 1)).sqrt()
    return value, stderr, k / max((k - 1) * (k - 2), 1) * deviation.pow(3).sum(1)
