"""Text as whole numbers and back: characters, the bytes of UTF-8, or byte pairs (BPE).

A tokeniser is plain data that travels in a model's file (`DataSpec.text`); none of it is code. `END` is the symbol
after each of several documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import schema
from ..errors import SfumatoError

END = "\x03"  # "end of text" in ASCII
KINDS = ("characters", "bytes", "bpe")
ALPHABET = 256  # more characters than this are taken as bytes, unless asked for
MOST = 1 << 17  # symbols
_PAIR = schema.listed(schema.text, 2, 2)
SCHEMA = schema.fields(
    {"kind": schema.text, "symbols": schema.listed(schema.text, 0, MOST), "merges": schema.listed(_PAIR, 0, MOST)},
    rest=None,
)
_BPE = re.compile(r"bpe(?:\((\d+)\))?")
_BPE_SIZE = 1024


def _printable_bytes() -> list[str]:
    """The character for each byte in a byte-level BPE (Radford et al. 2019): itself where it is printable."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in plain)}
    return [other.get(byte, chr(byte)) for byte in range(256)]


BYTES = _printable_bytes()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTES)}


@dataclass(frozen=True)
class Tokeniser:
    """Text <-> numbers 0 .. size - 1.

    kind: "characters", "bytes" or "bpe". symbols: the characters, or the tokens of the BPE, spelt by `BYTES`; none for
    bytes. merges: of the BPE, in order. Raises SfumatoError for a description that is no tokeniser.
    """

    kind: str
    symbols: tuple[str, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        known, repeated = set(self.symbols), len(set(self.symbols)) < len(self.symbols)
        if self.kind not in KINDS:
            raise SfumatoError(f"a tokeniser's kind must be one of {', '.join(KINDS)}, but it is {self.kind!r:.80}")
        if repeated or self.size > MOST or self.size < 2:
            raise SfumatoError(f"a tokeniser needs 2 to {MOST:,} different symbols, but it has {len(known):,}")
        if self.kind == "characters" and any(len(each) != 1 for each in self.symbols):
            raise SfumatoError("the symbols of a tokeniser of characters must be single characters")
        if self.kind == "bpe" and not (
            all(set(each) <= _BYTE_OF.keys() and each for each in self.symbols)
            and set(BYTES) <= known
            and all({left, right, left + right} <= known for left, right in self.merges)
        ):
            raise SfumatoError("a BPE tokeniser needs all bytes as symbols, and merges between its own symbols")

    @classmethod
    def fit(cls, documents: Sequence[str], asked: str | None = None, end: bool = False) -> Tokeniser:
        """The tokeniser of documents: as asked, or characters where there are at most 256, else bytes.

        asked: "characters", "bytes", "bpe" or "bpe(4096)". end: whether `END` will stand between them.
        """
        size = _BPE.fullmatch(asked or "")
        if size:
            return _trained(documents, int(size[1] or _BPE_SIZE))
        if asked not in (None, "auto", "characters", "bytes"):
            raise SfumatoError(f"tokens must be auto, characters, bytes, bpe or bpe(SIZE), not {asked!r:.80}")
        found = set().union(*documents) | ({END} if end else set())
        if asked == "bytes" or (asked != "characters" and len(found) > ALPHABET):
            return cls("bytes")
        if len(found) < 2:
            raise SfumatoError("the text is one character over and over: there is nothing to learn")
        return cls("characters", tuple(sorted(found)))

    @property
    def size(self) -> int:
        """The number of symbols."""
        return 256 if self.kind == "bytes" else len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of a text, int64 (n,). Raises SfumatoError for a character that the tokeniser lacks."""
        if self.kind == "bytes":
            return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        if self.kind == "bpe":
            return np.array(self._bpe.encode(text).ids, np.int64)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.array([ord(each) for each in self.symbols], np.uint32)
        order = np.argsort(known)
        places = np.searchsorted(known[order], points).clip(0, len(known) - 1)
        found = order[places]
        if (unknown := np.flatnonzero(known[found] != points)).size:
            raise SfumatoError(
                f"{chr(points[unknown[0]])!r} is not among the {self.size} characters that were learned: "
                f"{printable(''.join(self.symbols))!s:.200}"
            )
        return found.astype(np.int64)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers, without those from `size` on, which fill texts up; bytes that are not UTF-8 become
        U+FFFD."""
        numbers = [int(each) for each in numbers if int(each) < self.size]
        if self.kind == "bytes":
            return bytes(numbers).decode(errors="replace")
        text = "".join(self.symbols[each] for each in numbers)
        return bytes(_BYTE_OF[each] for each in text).decode(errors="replace") if self.kind == "bpe" else text

    def describe(self) -> str:
        """In words: 84 characters, bytes, 1,024 byte pairs."""
        return "bytes" if self.kind == "bytes" else f"{self.size:,} {'byte pairs' if self.merges else 'characters'}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "symbols": list(self.symbols), "merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tokeniser:
        """The inverse of `to_dict`. Raises SfumatoError for anything else."""
        schema.require(data, SCHEMA, "a tokeniser")
        return cls(data["kind"], tuple(data["symbols"]), tuple((left, right) for left, right in data["merges"]))

    @cached_property
    def _bpe(self) -> Any:
        library = _tokenizers()
        vocabulary = {symbol: number for number, symbol in enumerate(self.symbols)}
        made = library.Tokenizer(library.models.BPE(vocabulary, list(self.merges)))
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        return made


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise SfumatoError("byte pairs need the library tokenizers: pip install 'sfumato[text]'") from None
    return tokenizers


def _trained(documents: Sequence[str], size: int) -> Tokeniser:
    """The BPE of these documents."""
    library = _tokenizers()
    if not 257 <= size <= MOST:
        raise SfumatoError(f"byte pairs need 257 to {MOST:,} symbols, not {size:,}")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=BYTES, show_progress=False)
    made.train_from_iterator(documents, trainer)
    model = json.loads(made.to_str())["model"]
    symbols = sorted(model["vocab"], key=lambda symbol: model["vocab"][symbol])
    return Tokeniser("bpe", tuple(symbols), tuple((left, right) for left, right in model["merges"]))


def printable(text: str) -> str:
    r"""The text with all that a terminal might obey escaped, as in \x1b; lines stay lines."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text
    )
