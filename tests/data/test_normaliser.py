"""z = (x - mean) / std in float64: closed forms, round trips over 18 orders of magnitude."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data import statistics as module
from sfumato.data.statistics import statistics
from sfumato.errors import SfumatoError
from sfumato.normaliser import Normaliser


def gaussian(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_statistics_of_a_known_set():
    x = torch.tensor([[[1.0, 3.0], [10.0, 10.0]], [[5.0, 7.0], [10.0, 10.0]]])
    figures = statistics(x)
    assert figures.mean == (4.0, 10.0)
    assert figures.std == pytest.approx((math.sqrt(5.0), 0.0))
    assert figures.low == (1.0, 10.0) and figures.high == (7.0, 10.0)
    assert figures.quiet_sample == (1.0, 0.0)


@pytest.mark.parametrize("entries", [1, 1000, 1 << 22])
def test_statistics_agree_with_numpy_in_chunks_of_any_size_and_for_an_index(monkeypatch, entries):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    x = (gaussian((40, 2, 13, 12)) * 30 + 100).clamp(0, 255).to(torch.uint8)
    indices = torch.arange(0, 40, 3)
    for chosen, rows in ((None, x), (indices, x[indices])):
        figures = statistics(x, chosen)
        reference = rows.numpy().astype(np.float64)
        assert figures.mean == pytest.approx(tuple(reference.mean((0, 2, 3))), rel=1e-12)
        assert figures.std == pytest.approx(tuple(reference.std((0, 2, 3))), rel=1e-12)


def test_the_quietest_group_is_found():
    x = gaussian((800, 1, 4))
    x[400:408] *= 1e-3
    figures = statistics(x)
    assert figures.quiet[0] == pytest.approx(float(x[400:408].std(correction=0)), rel=1e-9)


def test_a_small_spread_on_a_large_offset_is_not_lost():
    x = 1e9 + gaussian((5000, 1))
    figures = statistics(x)
    assert figures.std[0] == pytest.approx(float((x - 1e9).std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e-3, 1.0, 1e6, 1e200])
def test_normalised_data_has_mean_0_and_std_1_whatever_the_unit(scale):
    x = gaussian((4000, 3)) * scale
    z = Normaliser.of(statistics(x)).normalise(x).double()
    assert z.mean(0).abs().max() < 1e-6
    assert (z.std(0, correction=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("power", [-900, 0, 1000])
def test_the_quietest_group_scales_with_the_unit_to_the_last_digit(power):
    """Squares of 1e300 overflow, and a channel of its own scale lies beside it."""
    x = gaussian((100, 2, 4))
    known = statistics(x)
    figures = statistics(x * torch.tensor([2.0**power, 1.0], dtype=torch.float64)[:, None])
    for name in ("quiet", "quiet_sample"):
        scaled = getattr(known, name)
        assert getattr(figures, name) == (math.ldexp(scaled[0], power), scaled[1])


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.floats(-12, 6),
    offset=st.floats(-10, 10),
    shape=st.sampled_from([(2,), (1, 16), (3, 5, 4), (2, 3, 4, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_round_trip_relative_error(exponent, offset, shape, dtype, seed):
    x = ((gaussian((32, *shape), seed) + offset) * 10.0**exponent).to(dtype)
    normaliser = Normaliser.of(statistics(x))
    back = normaliser.denormalise(normaliser.normalise(x)).to(dtype)
    assert float((back - x).abs().max() / x.abs().max()) < 1e-5


def test_round_trip_of_300_plus_minus_50():
    x = gaussian((1000, 2, 8)) * 50 + 300
    normaliser = Normaliser.of(statistics(x))
    assert float(((normaliser.denormalise(normaliser.normalise(x)) - x) / x).abs().max()) < 1e-5


def test_a_constant_channel_maps_to_zero_and_comes_back_exactly():
    x = torch.stack([torch.full((50, 6), 0.1), torch.randn(50, 6)], 1)
    normaliser = Normaliser.of(statistics(x))
    z = normaliser.normalise(x)
    assert normaliser.std[0] == 1.0
    assert torch.equal(z[:, 0], torch.zeros(50, 6))
    assert torch.equal(normaliser.denormalise(z)[:, 0].float(), x[:, 0])


def test_log_jacobian_is_that_of_the_map():
    normaliser = Normaliser((1.0, -2.0), (0.5, 40.0))
    shape = (2, 3, 2)
    x = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: (v - torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)) / torch.tensor([0.5, 40.0]).view(1, 2, 1, 1), x
    )
    expected = torch.linalg.slogdet(jacobian.reshape(12, 12)).logabsdet
    assert normaliser.log_jacobian(shape) == pytest.approx(float(expected), rel=1e-12)
    moved = normaliser.normalise(x + 1) - normaliser.normalise(x)  # the map itself has that slope
    assert float(moved.double().log().sum()) == pytest.approx(float(expected), rel=1e-6)


def test_log_jacobian_shifts_by_the_log_of_the_unit():
    x = gaussian((500, 2, 7))
    metres, millimetres = (Normaliser.of(statistics(v)) for v in (x, 1000 * x))
    assert millimetres.log_jacobian((2, 7)) - metres.log_jacobian((2, 7)) == pytest.approx(-14 * math.log(1000))


def test_dict_round_trip_is_exact_and_strict():
    normaliser = Normaliser((0.1, 1 / 3), (1e-12, 7.0))
    assert Normaliser.from_dict(normaliser.to_dict()) == normaliser
    good = normaliser.to_dict()
    for wrong in ({**good, "extra": 1}, {"mean": [0.0], "std": [1.0]}, {**good, "name": "log"}):
        with pytest.raises(SfumatoError, match="a normaliser( has|: )"):
            Normaliser.from_dict(wrong)


@pytest.mark.parametrize("mean, std", [((0.0,), (0.0,)), ((float("nan"),), (1.0,)), ((0.0, 1.0), (1.0,)), ((), ())])
def test_figures_that_cannot_be_inverted_are_refused(mean, std):
    with pytest.raises(SfumatoError):
        Normaliser(mean, std)
