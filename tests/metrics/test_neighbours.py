"""Precision, recall, density and coverage: toy sets, brute force, and what equal laws score."""

import pytest
import torch

import sfumato as sf
from sfumato.metrics import Coverage, Density, Precision, Recall

ALL = [Precision, Recall, Density, Coverage]


def draws(n: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute(x, y, k: int) -> list[float]:
    def radius(of):
        return [sorted(float((of[i] - of[j]).norm()) for j in range(len(of)) if j != i)[k - 1] for i in range(len(of))]

    rx, ry = radius(x), radius(y)
    inside = [[float((a - b).norm()) < ry[j] for j, b in enumerate(y)] for a in x]
    precision = sum(any(row) for row in inside) / len(x)
    recall = sum(any(float((a - b).norm()) < rx[i] for i, a in enumerate(x)) for b in y) / len(y)
    density = sum(map(sum, inside)) / (k * len(x))
    coverage = sum(any(row[j] for row in inside) for j in range(len(y))) / len(y)
    return [precision, recall, density, coverage]


@pytest.mark.parametrize("k", [1, 3])
def test_brute_force(k):
    x, y = draws(25, 0, 0.5), draws(30, 1)
    assert [of(k)(x, y).value for of in ALL] == pytest.approx(brute(x, y, k), rel=1e-12)


def test_far_apart_nothing_is_shared():
    x, y = draws(50, 0, 100.0), draws(50, 1)
    assert [of()(x, y).value for of in ALL] == [0, 0, 0, 0]


def test_one_spot_of_the_data_is_precise_and_covers_little():
    x, y = draws(200, 0, 0.0, 0.05), draws(200, 1)
    assert Precision()(x, y).value > 0.95 and Recall()(x, y).value < 0.1 and Coverage()(x, y).value < 0.3


def test_noise_around_the_data_covers_and_is_not_precise():
    x, y = draws(200, 0, 0.0, 5.0), draws(200, 1)
    assert Precision()(x, y).value < 0.5 and Recall()(x, y).value > 0.95


def test_equal_laws_score_what_the_papers_say():
    """Density 1 and coverage 1 - 2^-k."""
    x, y = draws(700, 0), draws(700, 1)
    assert Density()(x, y).value == pytest.approx(1, abs=0.06)
    for k in (1, 3):
        assert Coverage(k)(x, y).value == pytest.approx(1 - 2**-k, abs=0.04)


def test_intervals_stay_within_what_is_possible():
    x, y = draws(60, 0), draws(60, 1)
    assert all(0 <= of()(x, y).low <= of()(x, y).high <= 1 for of in (Precision, Recall, Coverage))
    with pytest.raises(sf.SfumatoError, match="at least 12 samples, not 11"):
        Density()(x[:11], y)
