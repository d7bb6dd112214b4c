"""What files say is checked, and what breaks a bound hears of the bound."""

import math

import pytest

from sfumato import schema
from sfumato.errors import SfumatoError


@pytest.mark.parametrize(
    "check, value, words",
    [
        (schema.number(1e-300), 0, "expected a finite number from 1e-300, got 0."),
        (schema.number(high=5), 6.5, "expected a finite number to 5, got 6.5."),
        (schema.number(0, 1), 2, "expected a finite number from 0 to 1, got 2."),
        (schema.number(1, math.inf), math.nan, "expected a number from 1, got nan."),
        (schema.number(), math.inf, "expected a finite number, got inf."),
        (schema.whole(1, 9000), 0, "expected a whole number from 1 to 9,000, got 0."),
        (schema.listed(schema.anything, 1, 4096), [], "expected a list of 1 to 4,096, got a list of 0."),
        (schema.listed(schema.anything, 0, 2), [1, 2, 3], "expected a list of 0 to 2, got a list of 3."),
        (schema.listed(schema.anything, 2), [1], "expected a list of 2 or more, got a list of 1."),
        (schema.listed(schema.anything, 2, 2), [1], "expected a list of 2, got a list of 1."),
        (schema.listed(schema.anything), 1, "expected a list, got 1."),
    ],
)
def test_what_breaks_a_bound_hears_of_it(check, value, words):
    with pytest.raises(SfumatoError) as caught:
        check(value, "")
    assert str(caught.value) == words
