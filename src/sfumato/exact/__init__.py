"""Models whose every quantity is known: the truth that the rest is proven against."""

from sfumato.exact.empirical import Empirical
from sfumato.exact.field import GaussianField
from sfumato.exact.mixture import GaussianMixture
from sfumato.exact.truth import At, ExactDenoiser, Moments, Truth

__all__ = ["At", "Empirical", "ExactDenoiser", "GaussianField", "GaussianMixture", "Moments", "Truth"]
