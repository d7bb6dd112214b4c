"""Intervals hold the truth as often as they say, also where draws share samples."""

import math

import pytest
import torch
from scipy import stats

from sfumato import intervals


def test_a_sample_of_its_own_for_each_draw():
    """Then it is the error of a stratified mean: sqrt(sum_k s_k^2 / m) / K."""
    values = torch.randn(96, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    strata = torch.arange(96) % 8
    found = intervals.mean(values, torch.arange(96), strata)
    table = values.reshape(12, 8)
    assert found.stderr == pytest.approx(math.sqrt(float(table.var(0).sum()) / 12) / 8)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 88) * found.stderr) and found.value == float(values.mean())


def test_draws_that_share_samples():
    """16 samples with 6 draws each: what a sample is like is shared, and treating draws as independent is too sure."""
    generator, inside, naive = torch.Generator().manual_seed(0), 0, 0
    groups, strata = (torch.arange(96) + torch.arange(96) // 16) % 16, torch.arange(96) % 8
    for _ in range(400):
        own = torch.randn(16, generator=generator, dtype=torch.float64)
        values = strata + own[groups] + 0.5 * torch.randn(96, generator=generator, dtype=torch.float64)
        found = intervals.mean(values, groups, strata)
        inside += found.low <= 3.5 <= found.high
        other = intervals.mean(values, torch.arange(96), strata)
        naive += other.low <= 3.5 <= other.high
    assert inside >= 365 and naive < 300  # 380 within three and a half deviations


def test_one_sample_tells_no_interval():
    found = intervals.mean(torch.tensor([1.0, 3.0]), torch.tensor([4, 4]), torch.tensor([0, 0]))
    assert found.value == 2 and found.to_dict() == {"value": 2.0, "low": None, "high": None, "stderr": None}


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("k", [0, 3, 10])
def test_fractions(k, n):
    wanted = stats.binomtest(k, n).proportion_ci(method="wilson")
    found = intervals.fraction(k / n, n)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert intervals.fraction(0.0, 2000).low == 0 and intervals.fraction(1.0, 2000).high == 1  # not nearly
