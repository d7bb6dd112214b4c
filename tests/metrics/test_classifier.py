"""C2ST: a half for equal laws, all for laws apart, and dependence that marginals do not see."""

import sys

import pytest
import torch

import sfumato as sf
from sfumato.metrics import C2ST, Marginals


def pairs(n: int, seed: int, slope: float = 0.95) -> torch.Tensor:
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack((noise[:, 0], slope * noise[:, 0] + (1 - slope**2) ** 0.5 * noise[:, 1]), 1)


def test_equal_laws_are_told_apart_half_of_the_time():
    pytest.importorskip("sklearn")
    found = C2ST(trees=20)(pairs(500, 4), pairs(500, 5))
    assert found.low < 0.5 < found.high and found.half < 0.05
    assert C2ST(trees=20)(pairs(500, 4), pairs(500, 5)) == found  # a function of its arguments


def test_laws_apart_are_told_apart():
    pytest.importorskip("sklearn")
    assert C2ST(trees=20)(pairs(200, 0) + 9, pairs(200, 1)).value > 0.99


def test_shuffled_columns_are_found_where_marginals_are_perfect():
    pytest.importorskip("sklearn")
    x, y = pairs(500, 0), pairs(500, 1)
    x[:, 1] = x[torch.randperm(500, generator=torch.Generator().manual_seed(2)), 1]
    assert C2ST(trees=20)(x, y).low > 0.7 and Marginals()(x, y).value < 0.08


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(sf.SfumatoError, match=r"pip install 'sfumato\[metrics\]'"):
        C2ST()(pairs(20, 0), pairs(20, 1))


def test_intervals_of_equal_laws_cover_a_half():
    pytest.importorskip("sklearn")
    found = [C2ST(trees=5)(pairs(60, 2 * seed), pairs(60, 2 * seed + 1)) for seed in range(20)]
    assert sum(each.low <= 0.5 <= each.high for each in found) >= 18


def test_too_few_samples():
    pytest.importorskip("sklearn")
    with pytest.raises(sf.SfumatoError, match="at least 10 samples, not 9"):
        C2ST()(pairs(9, 0), pairs(20, 1))
