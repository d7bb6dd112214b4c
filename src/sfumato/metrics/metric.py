"""A measured value beside its interval, its floor and the protocol by which it was measured.

    hash = BLAKE2b of the protocol as JSON

Values of two protocols are not compared: `a - b`, `a < b` and `compare(a, b)` raise an error that names what differs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.intervals import NORMAL, Interval


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
    """One figure of merit.

    interval: the value with its 95 % interval. floor: what a second half of the real data scores in the place of the
    samples, of the same number; None for measures of the model itself. protocol: everything that the value depends on
    besides the model or the samples that are judged, as plain values.
    """

    interval: Interval
    floor: Interval | None
    protocol: Mapping[str, Any]

    @property
    def value(self) -> float:
        return self.interval.value

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the protocol; any field that changes changes them."""
        text = json.dumps(dict(self.protocol), sort_keys=True, allow_nan=False)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def __sub__(self, other: Metric) -> Interval:
        return compare(self, other)

    def __lt__(self, other: Metric) -> bool:
        return compare(self, other).value < 0

    def __gt__(self, other: Metric) -> bool:
        return compare(self, other).value > 0

    def __str__(self) -> str:
        floor = "" if self.floor is None else f", real data {self.floor.value:.4g}"
        return f"{self.value:.4g} ({self.interval.low:.4g} to {self.interval.high:.4g}{floor})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        floor = None if self.floor is None else self.floor.to_dict()
        return {**self.interval.to_dict(), "floor": floor, "protocol": dict(self.protocol), "hash": self.hash}


def compare(a: Metric, b: Metric, varying: Collection[str] = ()) -> Interval:
    """a - b, its interval as if the two were independent: wider than needed where both share the real data.

    varying: fields of the protocol that may differ because they are what is compared, such as "solver" and "calls".
    Raises SfumatoError, naming the field, for results of different protocols.
    """
    for name in (*a.protocol, *(name for name in b.protocol if name not in a.protocol)):
        one, other = a.protocol.get(name), b.protocol.get(name)
        if one != other and name not in varying:
            raise SfumatoError(
                f"These results cannot be compared, since their {name} differs ({one} and {other}): measure both "
                f"alike, or say compare(a, b, varying=[{name!r}])."
            )
    stderr = math.hypot(a.interval.stderr, b.interval.stderr)
    value = a.value - b.value
    return Interval(value, value - NORMAL * stderr, value + NORMAL * stderr, stderr)
