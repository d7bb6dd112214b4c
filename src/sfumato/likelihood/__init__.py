"""Likelihoods, each with estimates of its errors."""

from sfumato.likelihood.gap import bound_gap
from sfumato.likelihood.measured import Measured, bits_per_dim
from sfumato.likelihood.methods import log_prob
from sfumato.likelihood.own_density import density_gap
from sfumato.likelihood.rate import RateSplit, rate_split
from sfumato.likelihood.rows import RowLikelihood
from sfumato.likelihood.unnormalised import energy

__all__ = [
    "Measured", "RateSplit", "RowLikelihood", "bits_per_dim", "bound_gap", "density_gap", "energy", "log_prob",
    "rate_split",
]  # fmt: skip
