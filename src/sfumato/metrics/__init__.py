"""Metrics of samples: what a model is worth, beside what real data are worth, under a protocol that travels along."""

from sfumato.metrics.channels import Autocorrelation, Marginals, Spectrum
from sfumato.metrics.classifier import C2ST
from sfumato.metrics.evaluation import Evaluator, Point, evaluate, sweep
from sfumato.metrics.features import Convolutions
from sfumato.metrics.frechet import FD
from sfumato.metrics.kernels import KID, MMD, Energy
from sfumato.metrics.metric import Metric, compare
from sfumato.metrics.neighbours import Coverage, Density, Precision, Recall
from sfumato.metrics.text import BitsPerCharacter, Distinct, NgramOverlap
from sfumato.metrics.transport import SlicedWasserstein, Wasserstein

__all__ = [
    "C2ST", "FD", "KID", "MMD", "Autocorrelation", "BitsPerCharacter", "Convolutions", "Coverage", "Density",
    "Distinct", "Energy", "Evaluator", "Marginals", "Metric", "NgramOverlap", "Point", "Precision",
    "Recall", "SlicedWasserstein", "Spectrum", "Wasserstein", "compare", "evaluate", "sweep",
]  # fmt: skip
