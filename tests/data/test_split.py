"""The hold-out: a function of the id alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data import split
from sfumato.errors import SfumatoError


def held(ids, fraction=0.05):
    return {ids[i] for i in split(ids, fraction)[1].tolist()}


def test_the_two_sides_are_a_partition_in_order():
    ids = [f"photo {i}" for i in range(1000)]
    train, holdout = split(ids)
    assert train.dtype == holdout.dtype == torch.int64
    assert sorted(train.tolist() + holdout.tolist()) == list(range(1000))
    assert train.tolist() == sorted(train.tolist()) and holdout.tolist() == sorted(holdout.tolist())


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5])
def test_the_share_held_out_is_the_fraction(fraction):
    n = 8_000
    share = len(split([str(i) for i in range(n)], fraction)[1]) / n
    assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / n) ** 0.5


def test_no_sample_changes_sides_when_data_grows_shrinks_or_is_reordered():
    few, many = [f"{i}.png" for i in range(500)], [f"{i}.png" for i in range(3000)]
    assert held(few) == held(many) & set(few)
    assert held(few[::-1]) == held(few)
    assert held(few[100:]) == held(few) - set(few[:100])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=40), st.floats(0, 0.999))
def test_train_is_never_empty_and_ten_samples_hold_one_out(ids, fraction):
    train, holdout = split(ids, fraction)
    assert len(train) >= 1 and len(train) + len(holdout) == len(ids)
    if fraction > 0 and len(set(ids)) > 1 and len(ids) >= 10:
        assert len(holdout) >= 1
    assert not {ids[i] for i in train.tolist()} & {ids[i] for i in holdout.tolist()}


def test_fraction_zero_holds_nothing_out():
    assert len(split([str(i) for i in range(100)], 0.0)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(SfumatoError, match="fraction"):
        split(["a", "b"], fraction)


def test_nothing_to_split_is_refused():
    with pytest.raises(SfumatoError, match="nothing to split"):
        split([])
