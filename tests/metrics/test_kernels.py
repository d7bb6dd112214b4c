"""Kernel distances: brute force, closed forms of normal laws, and intervals that cover 0 for equal laws."""

import itertools
import math

import pytest
import torch

import sfumato as sf
from sfumato.metrics import KID, MMD, Energy
from sfumato.metrics.kernels import discrepancy, median_distance
from sfumato.metrics.reference import Reference

F64 = torch.float64


def draws(n: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(n, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def brute(x, y, kernel) -> float:
    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i, j in itertools.permutations(range(n), 2)) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


CASES = {
    "kid": (KID(), lambda a, b: (float(a @ b) / len(a) + 1) ** 3),
    "mmd": (MMD(bandwidth=1.5), lambda a, b: math.exp(-float((a - b).square().sum()) / (2 * 1.5**2))),
    "energy": (Energy(), lambda a, b: -float((a - b).norm())),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_jackknife_by_brute_force(name):
    measure, kernel = CASES[name]
    x, y = draws(9, 3, 0), draws(7, 3, 1, 0.5)
    found = measure(x, y)
    assert found.value == pytest.approx(brute(x, y, kernel), rel=1e-12)
    keep = [[j for j in range(size) if j != i] for size in (9, 7) for i in range(size)]
    no_x = torch.tensor([brute(x[rows], y, kernel) for rows in keep[:9]], dtype=F64)
    no_y = torch.tensor([brute(x, y[rows], kernel) for rows in keep[9:]], dtype=F64)
    square = 8 / 9 * (no_x - no_x.mean()).square().sum() + 6 / 7 * (no_y - no_y.mean()).square().sum()

    def h(i, j):
        return kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])

    equal = sum(h(i, j) ** 2 for i, j in itertools.permutations(range(7), 2)) / 42 * (1 / 9 + 1 / 7) ** 2 / 2
    assert found.stderr == pytest.approx(math.sqrt(max(float(square), equal)), rel=1e-10)


def test_blocks_do_not_matter(monkeypatch):
    x, y = draws(40, 2, 0), draws(30, 2, 1)
    whole = Energy()(x, y)
    monkeypatch.setattr("sfumato.metrics.kernels._BLOCK", 64)
    assert Energy()(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.7, 1.0), (0.0, 2.0), (0.5, 0.6)])
def test_mmd_of_normal_laws(mean, std):
    """E k(a, b) = (h^2 / v)^(d/2) exp(-|m|^2 / (2 v)), v = h^2 + the variance of a - b."""
    h, d, n = 1.3, 3, 2000

    def expected(shift: float, variance: float) -> float:
        v = h * h + variance
        return (h * h / v) ** (d / 2) * math.exp(-d * shift**2 / (2 * v))

    true = expected(0, 2.0) + expected(0, 2 * std**2) - 2 * expected(mean, 1 + std**2)
    found = MMD(bandwidth=h)(draws(n, d, 0, mean, std), draws(n, d, 1))
    assert found.low < true < found.high and found.half < 0.02


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.7, 1.0), (0.0, 2.0), (-1.0, 0.5)])
def test_energy_distance_of_normal_laws(mean, std):
    """E|N(m, v)| = sqrt(2 v / pi) exp(-m^2 / (2 v)) + m erf(m / sqrt(2 v))."""

    def folded(m: float, v: float) -> float:
        return math.sqrt(2 * v / math.pi) * math.exp(-m * m / (2 * v)) + m * math.erf(m / math.sqrt(2 * v))

    true = 2 * folded(mean, 1 + std**2) - folded(0, 2.0) - folded(0, 2 * std**2)
    found = Energy()(draws(2000, 1, 0, mean, std), draws(2000, 1, 1))
    assert found.low < true < found.high and found.half < 0.15


def test_the_bandwidth_is_that_of_the_real_data_alone():
    y = draws(200, 2, 0)
    assert MMD()(draws(50, 2, 1, 9.0), y) == MMD(bandwidth=median_distance(y))(draws(50, 2, 1, 9.0), y)
    assert median_distance(y) == pytest.approx(float(torch.nn.functional.pdist(y).median()))
    with pytest.raises(sf.SfumatoError, match="a bandwidth above 0"):
        MMD()(y, torch.zeros(9, 2))
    with pytest.raises(sf.SfumatoError, match="at least 3 samples, not 2 and 9"):
        discrepancy(y[:2], y[:9], lambda a, b: a @ b.T)


def covered(measure, source, trials: int, n: int) -> int:
    """In how many of the trials the interval between two halves of one data set covers 0."""
    hits = 0
    for trial in range(trials):
        rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(trial))[: 2 * n]
        found = Reference(source, rows, n).measure(measure, source.x[rows[:0]].new_zeros(n, *source.shape))[1]
        hits += found.low <= 0 <= found.high
    return hits


@pytest.mark.parametrize("measure", [KID(), MMD()], ids=["kid", "mmd"])
def test_halves_of_one_data_set_cover_0(measure):
    assert covered(measure, sf.data.open("digits"), 20, 60) >= 19


@pytest.mark.slow
@pytest.mark.parametrize("measure", [KID(), MMD(), Energy()], ids=["kid", "mmd", "energy"])
def test_halves_of_one_data_set_cover_0_in_95_of_100(measure):
    assert covered(measure, sf.data.open("digits"), 100, 250) >= 95


@pytest.mark.parametrize("dim", [1, 8])
def test_the_variance_of_equal_laws(dim):
    """In one dimension M is nearly one squared normal number, far from normal; in many it is a sum of them."""
    found = [Energy()(draws(60, dim, 2 * seed), draws(60, dim, 2 * seed + 1)) for seed in range(200)]
    deviation = torch.tensor([each.value for each in found]).std()
    ratio = float(torch.tensor([each.stderr for each in found]).mean() / deviation)
    assert 1.0 < ratio < 1.7 and sum(each.low <= 0 <= each.high for each in found) >= 190
