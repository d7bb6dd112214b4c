"""Measures of text: bits per character of a model, and what its texts share with real ones, by words.

Words are letters and apostrophes, capitals aside. Intervals are over the texts; the real ones are taken as given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from sfumato.data import Source
from sfumato.diagnostics.text_bits import WORD, text_bits
from sfumato.intervals import Interval
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register

Gram = tuple[str, ...]


@register("metric", "bits-per-character")
@dataclasses.dataclass(frozen=True)
class BitsPerCharacter:
    """-log2 p(text) / characters of windows under the model, a bound for most (`diagnostics.text_bits`)."""

    windows: int = 64
    space: ClassVar[str] = "model"

    def __call__(self, model: Any, source: Source, train: Tensor, held: Tensor) -> Interval:
        return text_bits(model, source, train, held, self.windows).model


@register("metric", "ngram-overlap")
@register("metric", "known-words", n=1)
@dataclasses.dataclass(frozen=True)
class NgramOverlap:
    """The share of the runs of n words that occur in the real texts; of one word it is known-words.

    Far above its floor, the model recites; words far below it are misspelt.
    """

    n: int = 3
    space: ClassVar[str] = "texts"

    def __call__(self, x: Sequence[str], y: Sequence[str]) -> Interval:
        known = {gram for text in y for gram in grams(text, self.n)}
        found = [[gram in known for gram in grams(text, self.n)] for text in x]

        def share(i: Tensor, _: Tensor) -> float:
            chosen = [each for row in i.tolist() for each in found[row]]
            return sum(chosen) / max(1, len(chosen))

        return jackknife(share, len(x), len(x), most=1.0)


@register("metric", "distinct")
@dataclasses.dataclass(frozen=True)
class Distinct:
    """Different runs of n words over all runs (distinct-n, Li et al. 2016): far below its floor, the model repeats.

    Falls with the amount of text, so only texts of one number and length are compared.
    """

    n: int = 2
    space: ClassVar[str] = "texts"

    def __call__(self, x: Sequence[str], y: Sequence[str]) -> Interval:
        found = [grams(text, self.n) for text in x]

        def share(i: Tensor, _: Tensor) -> float:
            chosen = [gram for row in i.tolist() for gram in found[row]]
            return len(set(chosen)) / max(1, len(chosen))

        return jackknife(share, len(x), len(x), most=1.0)


def grams(text: str, n: int) -> list[Gram]:
    """All runs of n words of a text."""
    words = WORD.findall(text.lower())
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
