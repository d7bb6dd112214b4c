"""Metrics carry their protocol: what differs is named, and never compared."""

import json
import math

import pytest

from sfumato import SfumatoError
from sfumato.intervals import Interval, around
from sfumato.metrics import Metric, compare

PROTOCOL = {
    "metric": "KID()", "samples": 100, "real": 100, "reference": "digits", "reference_hash": "ab", "part": "train",
    "preprocessing": "none", "features": "convolutions", "features_hash": "cd", "sampler": "Heun", "steps": 5,
    "calls": 9, "guidance": None, "conditions": ["label"], "seed": 0, "weights": "ema", "precision": "float32",
}  # fmt: skip


def metric(value: float, stderr: float = 0.3, **other) -> Metric:
    return Metric(around(value, stderr, 50), Interval(0.1, 0.0, 0.2, 0.05), {**PROTOCOL, **other})


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_changed_field_changes_the_hash_and_is_named(name):
    changed = metric(1.0, **{name: "other"})
    assert changed.hash != metric(1.0).hash == metric(2.0).hash
    for act in (lambda a, b: a - b, lambda a, b: a < b, lambda a, b: a > b, compare, lambda a, b: sorted([a, b])):
        with pytest.raises(SfumatoError, match=f"since their {name} differs"):
            act(changed, metric(2.0))


def test_a_missing_field_differs_too():
    more = metric(1.0, resized=32)
    with pytest.raises(SfumatoError, match="since their resized differs"):
        compare(metric(1.0), more)


def test_equal_protocols_are_compared():
    a, b = metric(3.0, 0.3), metric(1.0, 0.4)
    difference = a - b
    assert difference.value == 2.0 and difference.stderr == pytest.approx(0.5)
    assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * 0.5, rel=1e-4)
    assert b < a and a > b and not a < b and sorted([a, b]) == [b, a]


def test_what_is_compared_may_vary():
    assert compare(metric(1.0, steps=10, calls=19), metric(2.0), varying=("steps", "calls")).value == -1.0
    with pytest.raises(SfumatoError, match="since their calls differs"):
        compare(metric(1.0, steps=10, calls=19), metric(2.0), varying=("steps",))


def test_json_has_everything():
    made = json.loads(json.dumps(metric(1.0).to_dict(), allow_nan=False))
    assert made["value"] == 1.0 and made["floor"]["value"] == 0.1 and made["protocol"] == PROTOCOL
    assert made["hash"] == metric(1.0).hash and len(made["hash"]) == 16
    assert Metric(Interval(1.0, 0.0, math.inf), None, PROTOCOL).to_dict()["high"] is None
