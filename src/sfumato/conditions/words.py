"""Captions as words: the vocabulary of the training captions, and a bucket for all other words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError

MOST = 20_000  # words of a vocabulary: rarer ones are unknown
LONGEST = 64  # most words of a caption that are read
UNKNOWN, END = 0, -1  # the id of an unknown word, and what follows the last
# a sign of Chinese or Japanese, a run of letters and digits, or a symbol that is no punctuation, such as an emoji
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s!-/:-@\[-`{-~\u2000-\u206f\ufe0f]"
)
_CONFIG = schema.fields(
    {
        "name": schema.choice("words"),
        "length": schema.whole(1, LONGEST),
        "vocabulary": schema.listed(schema.text, 1, MOST),
    },
    rest=None,
)


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case (Unicode NFKC and case folding), without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", caption).casefold())


@dataclass(frozen=True)
class Words:
    """caption -> ids int64 (length,): 1 + the place of each word in `vocabulary`, 0 if it is not there, -1 at the end.

    The vectors of the words are learned within the network (`nets.captioned.WordEncoder`).
    """

    vocabulary: tuple[str, ...]
    length: int
    name: ClassVar[str] = "words"

    @classmethod
    def fit(cls, captions: Sequence[str]) -> Words:
        """The words of these captions, the most frequent first, and the length of the longest."""
        split = [words(caption) for caption in captions]
        counts = Counter(word for caption in split for word in caption)
        if not counts:
            raise SfumatoError("there is no word in it")
        chosen = sorted(counts, key=lambda word: (-counts[word], word))[:MOST]
        return cls(tuple(chosen), min(LONGEST, max(map(len, split))))

    def encode(self, captions: Sequence[str | None]) -> Tensor:
        """int64 (n, length); a missing caption is all END."""
        known = {word: UNKNOWN + 1 + i for i, word in enumerate(self.vocabulary)}
        ids = torch.full((len(captions), self.length), END)
        for row, caption in zip(ids, captions, strict=True):
            if caption is not None:
                found = [known.get(word, UNKNOWN) for word in words(caption)[: self.length]] or [UNKNOWN]
                row[: len(found)] = torch.tensor(found)
        return ids

    def decode(self, values: Tensor) -> list[str]:
        """The words of each row, "?" for an unknown one."""
        spelt = ("?", *self.vocabulary)
        return [" ".join(spelt[i] for i in row if i >= 0) for row in values.tolist()]

    def doubt(self, values: Tensor) -> str | None:
        """A warning of captions with words that the training captions did not have."""
        strange = (values == UNKNOWN).any(1)
        if not bool(strange.any()):
            return None
        read = self.decode(values[strange])[0]
        return f"words that no training caption had are unknown to the model: it reads {read!r}"

    def read(self, text: str) -> str:
        """The words of a text."""
        return " ".join(words(text))

    def alike(self, texts: Sequence[str], others: Sequence[str]) -> Tensor:
        """The cosines (n, m) of the counts of trigrams, the runs of three letters of the words.

        The beginning and the end of a word count as letters, so that one of a single letter has a trigram too.
        """
        places: dict[str, list[tuple[int, int]]] = {}
        counts = [_trigrams(text) for text in others]
        for i, each in enumerate(counts):
            for run, n in each.items():
                places.setdefault(run, []).append((i, n))
        products = torch.zeros(len(texts), len(others))
        for row, each in zip(products, map(_trigrams, texts), strict=True):
            sums = [0] * len(others)
            for run, n in each.items():
                for i, m in places.get(run, ()):
                    sums[i] += n * m
            row[:] = torch.tensor(sums) / max(1.0, math.hypot(*each.values()))
        return products / torch.tensor([max(1.0, math.hypot(*each.values())) for each in counts])

    def network(self) -> dict[str, Any]:
        return {"kind": "words", "vocabulary": len(self.vocabulary)}

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "length": self.length, "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Words:
        _CONFIG(config, "")
        return cls(tuple(config["vocabulary"]), config["length"])

    def describe(self) -> str:
        return f"{len(self.vocabulary):,} words, up to {self.length} in a caption"


def _trigrams(text: str) -> Counter[str]:
    marked = (f"<{word}>" for word in words(text))
    return Counter(word[i : i + 3] for word in marked for i in range(len(word) - 2))
