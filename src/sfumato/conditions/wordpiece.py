"""WordPiece, the tokens of BERT: words in pieces, each the longest that the vocabulary has (1609.08144, Sect. 4.1)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_IDEOGRAPHS = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f])")
_LONGEST = 100  # characters of a word that is taken apart; a longer one is unknown


class WordPiece:
    """text -> ids: [CLS], the pieces of its words in lower case without accents, [SEP].

    vocabulary: one piece a line.
    """

    def __init__(self, vocabulary: str) -> None:
        self.ids = {piece: i for i, piece in enumerate(vocabulary.split("\n"))}
        self.start, self.end, self.unknown = (self.ids[mark] for mark in ("[CLS]", "[SEP]", "[UNK]"))

    def __call__(self, text: str, most: int) -> list[int]:
        """At most `most` ids, of which the first and the last are the marks."""
        ids = [i for word in split(text) for i in self._pieces(word)]
        return [self.start, *ids[: most - 2], self.end]

    def _pieces(self, word: str) -> list[int]:
        found: list[int] = []
        at = 0
        while at < len(word):
            ends = range(len(word), at, -1) if len(word) <= _LONGEST else range(0)
            head = "##" if at else ""
            end = next((end for end in ends if head + word[at:end] in self.ids), None)
            if end is None:
                return [self.unknown]
            found.append(self.ids[head + word[at:end]])
            at = end
        return found


def split(text: str) -> Iterator[str]:
    """Words in lower case without accents; signs of punctuation and ideographs are words of their own."""
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = _IDEOGRAPHS.sub(r" \1 ", text).lower()
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    for run in text.split():
        word = ""
        for c in run:
            if unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~":
                yield from filter(None, (word, c))
                word = ""
            else:
                word += c
        if word:
            yield word
