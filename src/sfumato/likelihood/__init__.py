"""Likelihoods with everything by which they may be wrong."""

from sfumato.likelihood.flow import log_prob
from sfumato.likelihood.measured import Measured, bits_per_dim

__all__ = ["Measured", "bits_per_dim", "log_prob"]
