"""C2ST: how often a classifier tells samples from real data (Lopez-Paz and Oquab 2017, 1610.06545).

    C2ST = share of the rows that are put on the right side by trees that were fitted to the other folds

The folds share what they are fitted to, so that the share of N rows varies more than that of N tosses: its interval is
that of N / (1 + K / (K - 1)) tosses for K folds (Nadeau and Bengio 2003, "Inference for the generalization error").
1/2 if nothing tells them apart, 1 if everything does. Boosted trees see each dependence between columns; linear and
nearest-neighbour classifiers miss most of them (shuffled columns look perfect to a logistic one) and are not offered.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
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
        try:
            from sklearn.ensemble import HistGradientBoostingClassifier
        except ImportError:
            raise SfumatoError("c2st needs the library scikit-learn: pip install 'sfumato[metrics]'.") from None
        n = min(len(x), len(y))
        if n < 2 * self.folds:
            raise SfumatoError(f"c2st in {self.folds} folds needs at least {2 * self.folds} samples, not {n}.")
        rows = torch.cat((x[:n], y[:n])).double().cpu().numpy()
        real = np.repeat([0, 1], n)
        order = noise.permutation(self.seed, 0, n).argsort().numpy()
        fold = np.tile(order % self.folds, 2)  # as many of each side in every fold
        right = 0
        for k in range(self.folds):
            trees = HistGradientBoostingClassifier(
                max_iter=self.trees, early_stopping=False, random_state=self.seed % 2**32
            )
            trees.fit(rows[fold != k], real[fold != k])
            right += int((trees.predict(rows[fold == k]) == real[fold == k]).sum())
        return fraction(right / (2 * n), 2 * n / (1 + self.folds / (self.folds - 1)))
