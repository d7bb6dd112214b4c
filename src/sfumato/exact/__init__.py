"""Models with every quantity known exactly, which the rest of the library is tested against."""

from sfumato.exact.empirical import Empirical
from sfumato.exact.field import GaussianField
from sfumato.exact.labelled import Labelled, LabelledDenoiser
from sfumato.exact.mixture import GaussianMixture
from sfumato.exact.pair import ExactPair, Pair
from sfumato.exact.ppca import PPCA
from sfumato.exact.strings import Strings
from sfumato.exact.table import Table, TableDenoiser
from sfumato.exact.truth import At, ExactDenoiser, Moments, Truth

__all__ = [
    "PPCA", "At", "Empirical", "ExactDenoiser", "ExactPair", "GaussianField", "GaussianMixture", "Labelled",
    "LabelledDenoiser", "Moments", "Pair", "Strings", "Table", "TableDenoiser", "Truth",
]  # fmt: skip
