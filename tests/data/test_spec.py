"""The data spec: the user's dtype and units at both ends, bounds respected, foreign units refused."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sfumato.data as data
from sfumato.conditions import find_class, of_data
from sfumato.data.spec import DTYPES, DataSpec, declared_bounds
from sfumato.errors import SfumatoError, SfumatoWarning

SHAPES = [(2,), (1, 128), (3, 97), (1, 28, 28), (12, 33, 50), (1, 24, 20, 28)]
MATRIX = [torch.uint8, torch.uint16, torch.float32, torch.int64]


def values(shape, dtype, n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, *shape), generator=generator, dtype=torch.float64)
    if dtype.is_floating_point:
        return x.to(dtype)
    top = {torch.bool: 1, torch.uint8: 255, torch.int8: 127}.get(dtype, 30_000)
    return (x * top / 8 + top / 2).clamp(0, top).round().to(dtype)


def spec_of(x, **kwargs):
    source = data.open(x, **kwargs)
    return DataSpec.fit(source, torch.arange(len(source)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", MATRIX, ids=str)
def test_shape_matrix_is_taken_as_it_is_and_comes_back(shape, dtype):
    x = values(shape, dtype)
    source = data.open(x)
    assert source.shape == shape and source.x.dtype == dtype
    spec = DataSpec.fit(source, torch.arange(len(source)))
    z = spec.normalise(x)
    assert z.dtype == torch.float32 and z.shape == x.shape
    back = spec.denormalise(z)
    assert back.dtype == dtype
    if dtype.is_floating_point:
        torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(back, x)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_round_trips(dtype):
    x = values((3, 10), dtype, n=40)
    spec = spec_of(x)
    back = spec.denormalise(spec.normalise(x))
    assert back.dtype == dtype == spec.torch_dtype
    tolerance = 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
    torch.testing.assert_close(back.double(), x.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16], ids=str)
def test_declared_bounds_hold_for_any_network_output(dtype):
    spec = spec_of(values((4,), dtype, n=50))
    low, high = declared_bounds(dtype)
    x = spec.denormalise(torch.linspace(-1e6, 1e6, 4001)[:, None].expand(-1, 4)).double()
    assert spec.bounds == (low, high)
    assert x.min() == low and x.max() == high


def test_undeclared_values_are_not_clipped():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    spec = spec_of(x)
    assert spec.bounds is None
    z = torch.tensor([[50.0, -50.0, 0.0]])
    expected = torch.tensor(spec.normaliser.mean) + z * torch.tensor(spec.normaliser.std)
    torch.testing.assert_close(spec.denormalise(z), expected)
    integers = spec_of((1000 * x).long())
    far = integers.denormalise(z)
    assert int(far[0, 0]) > int((1000 * x).max()) * 5  # far outside the data, and still there


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_whole_numbers_never_wrap_round(dtype):
    x = values((2,), dtype, n=50)
    spec = spec_of(x)
    out = spec.denormalise(torch.tensor([[1e30, -1e30]]))
    assert int(out[0, 0]) > 0 > int(out[0, 1])


def test_rounding_is_to_the_nearest():
    spec = spec_of(values((1,), torch.int32, n=50))
    wanted = torch.tensor([[100.4], [100.6], [-3.4], [-3.6]], dtype=torch.float64)
    z = spec.normaliser.normalise(wanted)
    assert spec.denormalise(z).flatten().tolist() == [100, 101, -3, -4]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=4, max_size=30))
def test_whole_numbers_come_back_within_float32_of_their_range(numbers):
    x = torch.tensor(numbers)[:, None]
    spec = spec_of(x)
    error = (spec.denormalise(spec.normalise(x)) - x).abs().max()
    assert float(error) <= 1e-6 * max(1, max(numbers) - min(numbers)) + 0.5


def test_statistics_are_those_of_the_training_split_only():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    source = data.open(x)
    train, holdout = source.split()
    x[holdout] += 1000.0
    spec = DataSpec.fit(source)
    assert spec.normaliser.mean == pytest.approx(x[train].double().mean(0).tolist(), rel=1e-12)
    assert DataSpec.fit(source, train) == spec


@pytest.mark.parametrize("classes", [None, ["ant", "bee"] * 20])
def test_dict_round_trip_through_json(classes):
    spec = spec_of(values((3, 9, 9), torch.uint16, n=40), labels=classes, name="insects")
    again = DataSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    z = torch.randn(5, 3, 9, 9)
    assert torch.equal(again.denormalise(z), spec.denormalise(z))


def test_from_dict_is_strict():
    good = spec_of(torch.randn(20, 3)).to_dict()
    with pytest.raises(SfumatoError, match="a data spec: there is no key 'colour'"):
        DataSpec.from_dict({**good, "colour": 1})
    with pytest.raises(SfumatoError, match="a data spec: the key 'bounds' is missing"):
        DataSpec.from_dict({k: v for k, v in good.items() if k != "bounds"})
    with pytest.raises(SfumatoError, match="a data spec: statistics: there is no key 'median'"):
        DataSpec.from_dict({**good, "statistics": {**good["statistics"], "median": [0.0]}})
    for field, value in (("dtype", "float8"), ("kind", "sound"), ("shape", [4])):
        with pytest.raises(SfumatoError, match=field):
            DataSpec.from_dict({**good, field: value})


@pytest.mark.parametrize("n", [1, 4, 8, 64, 2000])
@pytest.mark.parametrize("offset, scale", [(300.0, 50.0), (0.0, 1.0), (0.0, 3.0), (0.5, 0.2)])
def test_check_accepts_the_data_and_refuses_them_rescaled(n, offset, scale):
    x = torch.randn(2000, 2, 16, generator=torch.Generator().manual_seed(3)) * scale + offset
    spec = spec_of(x)
    spec.check(x[:n])
    for wrong in (x[:n] / 255, x[:n] * 255):
        with pytest.raises(SfumatoError, match=r"mean .*training") as caught:
            spec.check(wrong)
        assert any(character.isdigit() for character in str(caught.value))


@pytest.mark.parametrize("n", [8, 500])
def test_check_refuses_rescaled_vectors(n):
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(3)) * 50 + 300
    spec = spec_of(x)
    spec.check(x[:n])
    with pytest.raises(SfumatoError, match="not rescaled"):
        spec.check(x[:n] / 255)


def test_check_accepts_a_batch_of_one_class_with_a_warning():
    """Case Q10: points of a narrow class, whose spread is 25 times less than that of all."""
    draw = torch.Generator().manual_seed(3)
    narrow = torch.randn(300, 2, generator=draw) * 0.17 + 2
    x = torch.cat((narrow, torch.randn(700, 2, generator=draw) * 40 + 5))
    spec = spec_of(x[torch.randperm(1000, generator=draw)])
    with pytest.warns(SfumatoWarning, match="std 0.1.* of one kind, or in other units"):
        spec.check(narrow[:64])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec.check(narrow[:5])  # too few to compare
    with pytest.raises(SfumatoError, match="not rescaled"):
        spec.check(narrow[:64] + 400)


def test_check_refuses_fractions_of_whole_numbers_and_names_the_range():
    x = values((1, 9, 9), torch.uint8, n=20)
    spec = spec_of(x)
    spec.check(x)
    spec.check(x.numpy())
    with pytest.raises(SfumatoError, match="fractions between 0"):
        spec.check(x[:1] / 255)
    with pytest.raises(SfumatoError, match="outside the declared 0 to 255"):
        spec.check(x.float() * 2 - 255)


def test_check_raises_no_alarm_on_quiet_but_honest_data():
    generator = torch.Generator().manual_seed(0)
    blank = torch.randn(100, 1, 6, 6, generator=generator) * 1e-3
    x = blank.clone()
    x[::5] += torch.randn(20, 1, 6, 6, generator=generator) * 100  # four frames in five are nearly blank
    spec = spec_of(x)
    for start in range(0, 96, 3):
        spec.check(x[start : start + 4])
    heavy = torch.randn(4000, 1, generator=generator)
    heavy[7] = 1e4
    spec = spec_of(heavy)
    for start in range(8, 3900, 40):
        spec.check(heavy[start : start + 8])


def test_check_refuses_what_is_not_finite_or_of_another_shape():
    spec = spec_of(torch.randn(20, 3, 4))
    with pytest.raises(SfumatoError, match=r"\(B, 3, 4\), but it has \(5, 3, 5\)"):
        spec.check(torch.randn(5, 3, 5))
    with pytest.raises(SfumatoError, match=r"\(B, 3, 4\)"):
        spec.normalise(torch.randn(3, 4))
    with pytest.raises(SfumatoError, match="empty"):
        spec.check(torch.zeros(0, 3, 4))
    x = torch.randn(5, 3, 4)
    x[1, 2, 3] = float("inf")
    with pytest.raises(SfumatoError, match="1 value that is NaN or infinite"):
        spec.check(x)


def test_a_class_by_name_index_or_case():
    classes = DataSpec.fit(data.open("fashion"), torch.arange(64)).classes
    assert {find_class(classes, wanted) for wanted in ("Sneaker", "sneaker", "7", 7)} == {7}
    with pytest.raises(SfumatoError, match=r"did you mean 'Sneaker'.*0 T-shirt/top.*9 Ankle boot"):
        find_class(classes, "Sneakers")
    for wrong in (10, "-1", "", -1):
        with pytest.raises(SfumatoError, match="no class"):
            find_class(classes, wrong)


def test_where_class_names_are_numbers_a_number_means_the_name():
    classes = spec_of(torch.randn(30, 2), labels=[3, 10, 7] * 10).classes
    assert classes == ("3", "7", "10") and [find_class(classes, n) for n in (3, 7, "10")] == [0, 1, 2]
    with pytest.raises(SfumatoError, match="no class '0'"):
        find_class(classes, 0)


def test_describe_says_what_matters():
    x = torch.stack([torch.randn(40), torch.full((40,), 2.5)], 1)
    text = " ".join(spec_of(x, labels=["a", "b"] * 20, name="pairs").describe())
    for word in ("pairs", "float32", "no bounds", "mean 2.5 (constant)", "2 classes: a, b"):
        assert word in text
    assert "... and 12 more channels." in spec_of(torch.randn(30, 20)).describe()


def test_the_spec_cannot_be_changed_by_accident():
    spec = spec_of(torch.randn(20, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.shape = (4,)
    with pytest.raises(SfumatoError, match="no samples"):
        DataSpec.fit(data.open(np.zeros((5, 2))), torch.tensor([], dtype=torch.int64))


def test_conditions_are_those_of_the_training_split_and_come_back():
    """Mean and spread of the samples named, range and classes of all; equal after JSON; data in user units heard so."""
    t = torch.arange(40.0, dtype=torch.float64)
    tags = [["u", "w"][: i % 3] for i in range(40)]
    beside = {"t": t, "c": ["a", "b"] * 20, "v": torch.stack([t, -t], 1), "tags": tags}
    source = data.open({"x": torch.randn(40, 3), **beside, "label": ["cat", None, "dog", "dog"] * 10})
    spec = DataSpec.fit(source, torch.arange(10))
    assert {name: each.kind for name, each in spec.conditions.items()} == {
        "label": "label", "t": "scalar", "c": "label", "v": "vector", "tags": "multilabel"
    }  # fmt: skip
    scale = spec.conditions["t"].normaliser
    assert scale.mean == (4.5,) and scale.std == pytest.approx((float(torch.arange(10.0).std(correction=0)),))
    assert (spec.conditions["t"].low, spec.conditions["t"].high) == ((0.0,), (39.0,)) and spec.classes == ("cat", "dog")
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    words = " ".join(spec.describe())
    for word in ("2 classes: cat, dog", "condition t: a number from 0 to 39", "condition tags: any of 2 labels: u, w"):
        assert word in words, word
    heard = of_data(spec, source, torch.tensor([0, 1, 9, 39]))
    assert heard.given("t").values.tolist() == pytest.approx([(v - 4.5) / scale.std[0] for v in (0, 1, 9, 39)])
    assert heard["label"].tolist() == [0, -1, -1, 1]
    assert heard.given("label").present.tolist() == [True, False, False, True]
    with pytest.raises(SfumatoError, match="'colour'"):
        DataSpec.from_dict({**spec.to_dict(), "conditions": {"t": {"kind": "colour"}}})


def test_classes_of_older_files_are_the_condition_label():
    spec = spec_of(torch.randn(30, 2), labels=["a", "b", "c"] * 10)
    older = {name: value for name, value in spec.to_dict().items() if name != "conditions"}
    read = DataSpec.from_dict({**older, "classes": ["a", "b", "c"]})
    assert read == spec and read.classes == ("a", "b", "c")
    none = DataSpec.from_dict({**older, "classes": []})
    assert none.conditions == {} and none.classes == ()
    for wrong in ({**older, "conditions": {}, "classes": []}, older):
        with pytest.raises(SfumatoError, match="there is no key 'conditions'|the key 'conditions' is missing"):
            DataSpec.from_dict(wrong)
