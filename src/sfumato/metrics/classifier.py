"""C2ST: how often a classifier tells samples from real data (Lopez-Paz and Oquab 2017, 1610.06545).

    C2ST = share of the rows that are put on the right side by trees that were fitted to the other folds

The folds share what they are fitted to, so that the share of N rows varies more than that of N tosses: its interval is
that of N / (1 + K / (K - 1)) tosses for K folds (Nadeau and Bengio 2003, "Inference for the generalization error").
1/2 if nothing tells them apart, 1 if everything does. Boosted trees see each dependence between columns; linear and
nearest-neighbour classifiers miss most of them (shuffled columns look perfect to a logistic one) and are not offered.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, fraction
from sfumato.registry import register


@register("metric", "c2st")
@dataclasses.dataclass(frozen=True)
class C2ST:
    """The accuracy of gradient-boosted trees on numbers, cross-fitted in `folds` (needs scikit-learn)."""

    folds: int = 5
    trees: int = 100
    seed: int = 0
    space: ClassVar[str] = "numbers"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        ours, real = (each.double().cpu().numpy() for each in (x, y))
        return told_apart(ours, real, self.folds, self.trees, self.seed, [False] * ours.shape[1])


def told_apart(
    x: NDArray[np.float64], y: NDArray[np.float64], folds: int, trees: int, seed: int, symbols: list[bool]
) -> Interval:  # fmt: skip
    """The accuracy of trees that tell rows x (n, D) from y, cross-fitted; symbols: columns that are no quantities."""
    n = min(len(x), len(y))
    if n < 2 * folds:
        raise SfumatoError(f"c2st in {folds} folds needs at least {2 * folds} samples, not {n}.")
    rows, real = np.concatenate((x[:n], y[:n])), np.repeat([0, 1], n)
    order = noise.permutation(seed, 0, n).argsort().numpy()
    fold = np.tile(order % folds, 2)  # as many of each side in every fold
    right = 0
    for k in range(folds):
        fitted = boosted(False, trees, seed, symbols).fit(rows[fold != k], real[fold != k])
        right += int((fitted.predict(rows[fold == k]) == real[fold == k]).sum())
    return fraction(right / (2 * n), 2 * n / (1 + folds / (folds - 1)))


def boosted(numeric: bool, trees: int, seed: int, symbols: list[bool]) -> Any:
    """Gradient-boosted trees of scikit-learn, for a number or for classes."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    except ImportError:
        raise SfumatoError("c2st and utility need the library scikit-learn: pip install 'sfumato[metrics]'.") from None
    made = HistGradientBoostingRegressor if numeric else HistGradientBoostingClassifier
    return made(
        max_iter=trees, early_stopping=False, random_state=seed % 2**32, categorical_features=np.array(symbols, bool)
    )
