"""Wasserstein distances: shifts, brute force, normal laws."""

import itertools
import math

import pytest
import torch

import sfumato as sf
from sfumato.metrics import SlicedWasserstein, Wasserstein

F64 = torch.float64


def draws(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_a_shift_costs_its_length():
    x, shift = draws(100, 3, 0), torch.tensor([0.3, -0.4, 1.2], dtype=F64)
    pytest.importorskip("scipy")
    found = Wasserstein()(x + shift, x)
    assert found.value == pytest.approx(1.3, rel=1e-9) and found.half < 1e-9
    assert Wasserstein()(x, x).value == pytest.approx(0, abs=1e-6)
    many = SlicedWasserstein(directions=4000)(x + shift, x)
    assert many.value == pytest.approx(1.3 / math.sqrt(3), rel=0.02)  # E (u.s)^2 = |s|^2 / d
    assert SlicedWasserstein()(x, x).value == 0


def test_every_pairing_of_few():
    pytest.importorskip("scipy")
    x, y = draws(6, 2, 0), draws(6, 2, 1)
    best = min(float((x - y[list(order)]).square().sum(1).mean()) for order in itertools.permutations(range(6)))
    assert Wasserstein()(x, y).value == pytest.approx(math.sqrt(best), rel=1e-9)


def test_on_a_line_both_are_that_of_normal_laws():
    """W_2^2 = (m_1 - m_2)^2 + (s_1 - s_2)^2."""
    pytest.importorskip("scipy")
    x, y = 0.5 + 2 * draws(400, 1, 0), draws(400, 1, 1)
    sliced, exact = SlicedWasserstein()(x, y), Wasserstein()(x, y)
    assert sliced.value == pytest.approx(exact.value, rel=1e-9)
    assert sliced.low < math.sqrt(0.25 + 1) < sliced.high and sliced.half < 0.3


def test_unequal_sizes_by_quantiles():
    x = draws(400, 2, 0)
    assert SlicedWasserstein()(torch.cat((x, x)), x).value == pytest.approx(0, abs=1e-12)


def test_mistakes(monkeypatch):
    with pytest.raises(sf.SfumatoError, match="not 10 with 12: take sliced-wasserstein"):
        Wasserstein()(draws(10, 2, 0), draws(12, 2, 0))
    with pytest.raises(sf.SfumatoError, match="up to 1,000"):
        Wasserstein()(draws(1001, 2, 0), draws(1001, 2, 0))
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(sf.SfumatoError, match=r"pip install 'sfumato\[metrics\]'"):
        Wasserstein()(draws(10, 2, 0), draws(10, 2, 0))
    with pytest.raises(sf.SfumatoError, match="at least 2 samples, not 1 with 9"):
        SlicedWasserstein()(draws(1, 2, 0), draws(9, 2, 0))
