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


@pytest.mark.parametrize("name", CASES)
def test_pairs_by_brute_force(name):
    """The mean of h_ij over pairs of pairs, and its jackknife; 0 without any error for pairs of one and the same."""
    measure, kernel = CASES[name]
    x = draws(8, 3, 0)
    y = x + draws(8, 3, 1, 0.3, 0.2)

    def h(i, j):
        return kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])

    def mean(rows):
        return sum(h(i, j) for i, j in itertools.permutations(rows, 2)) / (len(rows) * (len(rows) - 1))

    found, left = measure.paired(x, y), [mean([j for j in range(8) if j != i]) for i in range(8)]
    assert found.value == pytest.approx(mean(range(8)), rel=1e-12)
    square = 7 * float(torch.tensor(left, dtype=F64).var(correction=0))
    equal = sum(h(i, j) ** 2 for i, j in itertools.permutations(range(8), 2)) / 56 * 2 / 64
    assert found.stderr == pytest.approx(math.sqrt(max(square, equal)), rel=1e-10)
    same = measure.paired(x, x)
    assert same.value == pytest.approx(0, abs=1e-12) and same.half < 1e-12


def test_pairs_that_share_their_noise_have_no_bias_and_less_variance():
    """Two normal laws whose samples lie close together: the mean over many sets is the closed form of MMD, which the
    estimate of two sets misses, as its kernel within pairs is near 1; and pairs are more precise than sets."""
    h, shift, runs = 1.0, 0.2, 300
    v = h * h + 2
    true = 2 * math.sqrt(h * h / v) * (1 - math.exp(-(shift**2) / (2 * v)))
    sets = [draws(40, 1, seed) for seed in range(runs)]
    paired = [MMD(bandwidth=h).paired(x + shift, x) for x in sets]
    alone = [MMD(bandwidth=h)(x + shift, y) for x, y in itertools.pairwise(sets)]
    values, apart = (torch.tensor([each.value for each in some], dtype=F64) for some in (paired, alone))
    error = float(values.std()) / math.sqrt(runs)
    assert abs(float(values.mean()) - true) < 4.5 * error and error < 0.1 * true
    assert float(values.std()) < 0.2 * float(apart.std())
    together = [MMD(bandwidth=h)(x + shift, x).value for x in sets]
    assert abs(sum(together) / runs - true) > 20 * error
    assert sum(each.low <= true <= each.high for each in paired) >= 0.9 * runs


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("near", [0.0, 0.9])
def test_intervals_of_pairs_of_one_law_cover_0(name, near):
    """Independent within a pair, and close together."""
    hits = 0
    for trial in range(100):
        x, y = draws(30, 4, 2 * trial), draws(30, 4, 2 * trial + 1)
        found = CASES[name][0].paired(x, near * x + math.sqrt(1 - near**2) * y)
        hits += found.low <= 0 <= found.high
    assert hits >= 93


def test_blocks_do_not_matter(monkeypatch):
    x, y = draws(40, 2, 0), draws(30, 2, 1)
    whole, pairs = Energy()(x, y), Energy().paired(x[:30], y)
    monkeypatch.setattr("sfumato.metrics.kernels._BLOCK", 64)
    assert Energy()(x, y) == pytest.approx(whole, rel=1e-12)
    assert Energy().paired(x[:30], y) == pytest.approx(pairs, rel=1e-12)


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
