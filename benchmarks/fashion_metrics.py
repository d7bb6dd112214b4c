"""Figures of merit of class-conditional samples, each beside what real images score.

Every comparison is between sets of equal size and of equal class counts, and each has a floor: the same figure for
real images that neither the model nor the other set has seen. Features are named; a figure without a name says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.metrics import KID, Coverage, Precision

Array = np.ndarray


@dataclass(frozen=True)
class Real:
    """Real images that the model never saw: two halves of `size`, of equal class counts, and a bank for distances."""

    first: Array  # indices into the pool
    second: Array
    bank: Array


def halves(labels: Array, wanted: Array, bank: int, seed: int = 0) -> Real:
    """Two disjoint sets with the class counts of `wanted`, and `bank` further images."""
    rng = np.random.default_rng(seed)
    first, second, rest = [], [], []
    for c in np.unique(labels):
        pool, n = rng.permutation(np.flatnonzero(labels == c)), int((wanted == c).sum())
        if len(pool) < 2 * n:
            raise ValueError(f"class {c}: {len(pool)} real images do not make two sets of {n}")
        first.append(pool[:n])
        second.append(pool[n : 2 * n])
        rest.append(pool[2 * n :])
    return Real(np.concatenate(first), np.concatenate(second), rng.permutation(np.concatenate(rest))[:bank])


def agreement(probabilities: Array, labels: Array) -> dict[str, float | list[float]]:
    """Share of the samples that the judge gives the class that was asked for, its standard error, and by class."""
    hit = probabilities.argmax(1) == labels
    p = float(hit.mean())
    by_class = [float(hit[labels == c].mean()) for c in np.unique(labels)]
    return {"value": p, "stderr": float(np.sqrt(p * (1 - p) / len(hit))), "by_class": by_class}


def kid(a: Array, b: Array) -> float:
    """The kernel inception distance of features (`sfumato.metrics.KID`)."""
    return KID()(rows(a), rows(b)).value


def rows(x: Array) -> Tensor:
    """(n, ...) -> (n, D)."""
    return torch.from_numpy(x.reshape(len(x), -1).astype(np.float64))


def kid_floor(real: Array, size: int, repeats: int = 20, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of `kid` between two random disjoint parts of `size` real images."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        order = rng.permutation(len(real))[: 2 * size]
        values.append(kid(real[order[:size]], real[order[size:]]))
    return float(np.mean(values)), float(np.std(values, ddof=1))


def distances(a: Array, b: Array) -> Array:
    """Euclidean distances (len(a), len(b)) between rows, in float64."""
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def spread(values: Array, labels: Array) -> Array:
    """Mean distance between two different members, for each class: (classes,)."""
    out = []
    for c in np.unique(labels):
        d = distances(values[labels == c], values[labels == c])
        out.append(d.sum() / (len(d) * (len(d) - 1)))
    return np.array(out)


def variety(sample: Array, sample_labels: Array, real: Array, real_labels: Array) -> dict[str, float | list[float]]:
    """Spread of each class of the samples over that of the real images; 1 is as varied as real."""
    ratio = spread(sample, sample_labels) / spread(real, real_labels)
    return {"mean": float(ratio.mean()), "least": float(ratio.min()), "by_class": [float(r) for r in ratio]}


def coverage(sample: Array, real: Array, k: int = 5) -> float:
    """Share of the real images near which there is a sample (`sfumato.metrics.Coverage`)."""
    return Coverage(k)(rows(sample), rows(real)).value


def precision(sample: Array, real: Array, k: int = 5) -> float:
    """Share of the samples that lie among the real images (`sfumato.metrics.Precision`)."""
    return Precision(k)(rows(sample), rows(real)).value


def copies(sample: Array, train: Array, unseen: Array, batch: int = 250) -> dict[str, float]:
    """Nearest-neighbour distances to the training images and to as many unseen ones, in root mean square grey levels.

    `closer_to_train` is the share of the samples whose nearest image is a training image: 0.5 where nothing is
    copied. `nearest` is the least distance of all.
    """
    n = min(len(train), len(unseen))
    rng = np.random.default_rng(0)
    train, unseen = train[rng.permutation(len(train))[:n]], unseen[rng.permutation(len(unseen))[:n]]
    to_train, to_unseen = [], []
    for i in range(0, len(sample), batch):
        to_train.append(distances(sample[i : i + batch], train).min(1))
        to_unseen.append(distances(sample[i : i + batch], unseen).min(1))
    a, b = np.concatenate(to_train), np.concatenate(to_unseen)
    root = np.sqrt(sample[0].size)
    return {
        "closer_to_train": float(((a < b) + 0.5 * (a == b)).mean()),
        "median_to_train": float(np.median(a) / root), "median_to_unseen": float(np.median(b) / root),
        "nearest_train": float(a.min() / root), "nearest_unseen": float(b.min() / root), "bank": float(n),
    }  # fmt: skip


def compare(features: Mapping[str, tuple[Array, Array]], labels: Array, real: Real, real_labels: Array) -> dict:
    """For each named feature (samples, pool of real images): KID, coverage, precision and variety, beside the floor."""
    report = {}
    for name, (sample, pool) in features.items():
        one, two = pool[real.first], pool[real.second]
        floor, deviation = kid_floor(pool, len(sample))
        report[name] = {
            "kid": kid(sample, one), "kid_floor": floor, "kid_floor_std": deviation,
            "coverage": coverage(sample, one), "coverage_real": coverage(two, one),
            "precision": precision(sample, one), "precision_real": precision(two, one),
            "variety": variety(sample, labels, one, real_labels[real.first]),
            "variety_real": variety(two, real_labels[real.second], one, real_labels[real.first]),
        }  # fmt: skip
    return report
