"""Kinds of conditions: guessed from a column, fitted to it, encoded from the user's units and back, kept as JSON."""

import json

import numpy as np
import pytest
import torch

from sfumato import conditions
from sfumato.conditions import Field, Label, MultiLabel, Scalar, Vector
from sfumato.errors import SfumatoError

VECTORS = np.arange(24.0).reshape(6, 4) ** 2
FIELDS = np.linspace(-1, 5, 80).reshape(5, 1, 4, 4)
COLUMNS = {
    "label": ["cat", "dog", None, "", "cat"],
    "multilabel": [["a", "b"], [], None, ["c"]],
    "scalar": [200.0, 300.0, None, 400.0],
    "vector": VECTORS,
    "field": FIELDS,
}


def test_a_column_is_guessed_fitted_and_kept():
    for kind, column in COLUMNS.items():
        made = conditions.fit(column, kind)
        assert made.kind == kind
        kept = json.loads(json.dumps(made.config()))
        assert conditions.from_config(kept) == made, kind
        json.dumps(made.network())
        given = made.encode(column, len(column))
        absent = [value is None or isinstance(value, str) and not value for value in column]
        assert (~given.present).tolist() == absent, kind
        back = made.encode(
            [None if gone else value for value, gone in zip(made.decode(given), absent, strict=True)], len(column)
        )
        assert torch.allclose(back.values.double(), given.values.double(), atol=1e-6), kind
        assert torch.equal(back.present, given.present), kind


def test_numbers_are_normalised_and_missing_ones_are_no_part_of_it():
    scalar = Scalar.fit([200.0, 300.0, float("nan"), 400.0])
    assert (scalar.normaliser.mean, scalar.low, scalar.high) == ((300.0,), (200.0,), (400.0,))
    given = scalar.encode([200, "400", None], 3)
    assert torch.allclose(given.values, torch.tensor([-1.2247449, 1.2247449, 0.0]))
    vector = Vector.fit(VECTORS)
    assert vector.encode(VECTORS, 6).values.std(0, correction=0).allclose(torch.ones(4))
    constant = Scalar.fit([3.0, 3.0])
    assert float(constant.encode(3.0, 1).values) == 0.0 and constant.decode(constant.encode(3.0, 1)) == [3.0]


def test_a_number_comes_back_as_it_was_given():
    for scale in (1e-9, 1.0, 1e9):
        scalar = Scalar.fit(np.random.default_rng(0).normal(310, 17, 50) * scale)
        for value in (300.0, 273.15, 299.9975, 310.0):
            assert scalar.decode(scalar.encode(value * scale, 1)) == [pytest.approx(value * scale, rel=1e-15)], value
    assert Scalar.fit([280.0, 320.0, 311.3]).decode(Scalar.fit([280.0, 320.0, 311.3]).encode([300, 0.1 + 299], 2)) == [
        300.0, 299.1
    ]  # fmt: skip
    vector = Vector.fit(np.random.default_rng(0).normal(3, 5, (50, 2)))
    assert vector.decode(vector.encode([0.1, -7.25], 1)) == [[0.1, -7.25]]


def test_one_value_or_one_a_sample():
    vector, field = Vector.fit(VECTORS), Field.fit(FIELDS)
    assert vector.encode(VECTORS[0], 4).values.shape == (4, 4)  # one vector of four for four samples
    assert vector.encode(VECTORS[:3], 3).values.shape == (3, 4)
    assert vector.encode("1,2,3,4", 2).values.shape == (2, 4)
    assert field.encode(FIELDS[0], 3).values.shape == (3, 1, 4, 4)
    labels = MultiLabel(("a", "b", "c"))
    assert labels.encode(["a", "c"], 2).values.tolist() == [[1, 0, 1]] * 2
    assert labels.encode("a, c", 1).values.tolist() == [[1, 0, 1]]
    assert labels.encode(np.array([1, 0, 1]), 2).values.tolist() == [[1, 0, 1]] * 2
    kinds = Label(("1", "2"))
    assert kinds.encode([2.0, float("nan"), 1], 3).values.tolist() == [1, -1, 0]


def test_what_is_no_value_is_said_in_a_sentence():
    made = {kind: conditions.fit(column, kind) for kind, column in COLUMNS.items()}
    cases = [
        ("scalar", [1, 2, 3], 2, "3 values for 2"),
        ("scalar", "warm", 1, "not a number"),
        ("scalar", float("inf"), 1, "infinite"), ("vector", [1, 2, 3], 1, "shape"),
        ("vector", np.ones((2, 3)), 2, "shape"),
        ("label", "mouse", 1, "no class 'mouse'"), ("label", ["cat", "dog"], 3, "2 values for 3"),
        ("label", torch.tensor([2]), 1, "indices from -1"), ("multilabel", "z", 1, "no class 'z'"),
        ("multilabel", np.ones((1, 2)), 1, "3 labels"), ("field", np.zeros((4, 4)), 1, "shape"),
    ]  # fmt: skip
    for kind, value, n, words in cases:
        with pytest.raises(SfumatoError, match=words):
            made[kind].encode(value, n)
    for kind, column, words in [
        ("scalar", [None, None], "missing"), ("scalar", ["a"], "not a number"), ("scalar", VECTORS, "axes"),
        ("vector", [1.0, 2.0], "axes"), ("label", [0.5, 1.0], "whole numbers"), ("label", [None], "missing"),
        ("scalar", [np.inf, 1.0], "infinite"), ("colour", [1], "no kind"),
    ]:  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            conditions.fit(column, kind)
    for config in ({"kind": "label"}, {"kind": "colour"}, {}, {"kind": "label", "classes": ["a"], "more": 1}):
        with pytest.raises(SfumatoError):
            conditions.from_config(config)
