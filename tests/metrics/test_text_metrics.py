"""Measures of text, by hand."""

import pytest

from sfumato.diagnostics.text_bits import known_words
from sfumato.metrics import Distinct, NgramOverlap
from sfumato.metrics.text import grams
from sfumato.registry import make

REAL = ["The cat sat on the mat.", "A dog sat on a log."]


def test_grams_are_runs_of_words():
    assert grams("It's a CAT, 3 cats", 2) == [("it's", "a"), ("a", "cat"), ("cat", "cats")]
    assert grams("one", 2) == []


def test_overlap():
    found = NgramOverlap(n=2)(["the cat sat", "the dog ran"], REAL)
    assert found.value == pytest.approx(2 / 4)
    assert NgramOverlap(n=3)(REAL, REAL).value == 1 and NgramOverlap()(["", "x"], REAL).value == 0


def test_distinct():
    assert Distinct(n=1)(["a a a a", "a b"], REAL).value == pytest.approx(2 / 6)
    assert Distinct(n=2)(["a b", "c d"], REAL).value == 1


def test_known_words():
    texts = ["the cat", "zzz qqq", "The DOG"]
    found = make("metric", "known-words")(texts, REAL)
    assert found.value == known_words(texts, "\n".join(REAL))
    assert found.value == pytest.approx(4 / 6) and found.low < 4 / 6 < found.high <= 1
