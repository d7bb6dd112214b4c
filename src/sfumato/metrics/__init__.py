"""Metrics of samples: what a model is worth, beside what real data are worth, under a protocol that travels along."""

from sfumato.features import Convolutions
from sfumato.metrics.channels import Autocorrelation, Marginals, Spectrum
from sfumato.metrics.classifier import C2ST
from sfumato.metrics.evaluation import Evaluator, Point, evaluate, sweep
from sfumato.metrics.frechet import FD, FID
from sfumato.metrics.inception import Inception
from sfumato.metrics.kernels import KID, MMD, Energy
from sfumato.metrics.lengths import LawOfLengths, StepMarginals
from sfumato.metrics.metric import Metric, compare
from sfumato.metrics.neighbours import Coverage, Density, Precision, Recall
from sfumato.metrics.tables import Association, CloserToTrain, Copies, Kolmogorov, RowsC2ST, TotalVariation, Utility
from sfumato.metrics.text import BitsPerCharacter, Distinct, NgramOverlap
from sfumato.metrics.transport import SlicedWasserstein, Wasserstein

__all__ = [
    "C2ST", "FD", "FID", "KID", "MMD", "Association", "Autocorrelation", "BitsPerCharacter", "CloserToTrain",
    "Convolutions", "Copies", "Coverage", "Density", "Distinct", "Energy", "Evaluator", "Inception", "Kolmogorov",
    "LawOfLengths", "Marginals", "Metric", "NgramOverlap", "Point", "Precision", "Recall", "RowsC2ST",
    "SlicedWasserstein", "Spectrum", "StepMarginals", "TotalVariation", "Utility", "Wasserstein", "compare", "evaluate",
    "sweep",
]  # fmt: skip
