"""Text files, lines of JSON, columns and lists of strings -> windows of equal length.

    tape      all documents one after another, each of several with `END` behind it, as numbers (`Tokeniser`)
    windows   tape[k L : (k + 1) L], k = 0, 1, ..                                      (N, 1, L)
    whole     each document, filled up behind its end to the length of the longest      (N, 1, L)

The documents of a tape are in the order of the hash of their text, and its first part is held out, by whole documents;
where that would be unfair (few documents, or one of more than a quarter of the text) the last part is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from ..errors import SfumatoError, counted
from ..machine import fits
from .images import together
from .names import Asked
from .source import Source
from .tables import LABEL_NAMES, TableFiles, is_string
from .text import END, Tokeniser

SUFFIXES, LINES = (".txt",), (".jsonl",)
KEY = "text"  # the column of text where none is named
LENGTHS = {"characters": 256, "bytes": 256, "bpe": 128}
LEAST_WINDOWS = 64  # shorter windows are cut of texts that would give fewer
BY_DOCUMENT = 8  # fewer documents are not held out whole
COST = 12  # bytes of memory that a byte of text may take while it is read
_BOM = "\ufeff"


def open_texts(paths: Sequence[Path], name: str, asked: Asked) -> Source:
    """Files of text, each a document, or of lines of JSON, each line a document."""
    where = together(paths)
    _require_memory(sum(path.stat().st_size for path in paths), where)
    if paths[0].suffix.lower() in SUFFIXES:
        asked._replace(length=None, tokens=None).require_unused(where)
        return from_documents([_read(path) for path in paths], name, where, asked)
    key = asked.key or KEY
    documents = [document for path in paths for document in _lines(path, key)]
    return from_documents(documents, name, where, asked)


def text_column(table: TableFiles, key: str | None) -> str | None:
    """The column of strings to learn: the one that is named, or `KEY` where others are strings or labels."""
    types = {field.name: field.type for field in table.schema}
    other = [name for name, kind in types.items() if not is_string(kind) and name not in LABEL_NAMES]
    found = key or (KEY if not other else "")
    return found if found in types and is_string(types[found]) else None


def open_column(table: TableFiles, name: str, column: str, asked: Asked) -> Source:
    """A column of strings of a table, each a document; empty cells are left out."""
    _, chosen = table.keep_split(asked.split, [column])
    _require_memory(table.nbytes, table.where)
    cells = [cell for part in table.whole(column) for cell in part.to_pylist()]
    found = from_documents([cell for cell in cells if cell], name, f"{table.where}: {column!r}", asked)
    return replace(found, notes=[*found.notes, *chosen])


def from_documents(documents: Iterable[str], name: str, where: str, asked: Asked) -> Source:
    """The windows of documents, with the tokeniser that was asked for or that suits them."""
    known = asked.tokens if isinstance(asked.tokens, Tokeniser) else None
    kept = [cleaned for document in documents if (cleaned := _clean(document, where)) or asked.whole]
    if not any(kept):
        raise SfumatoError(f"{where} holds no text")
    tokens = asked.tokens if isinstance(asked.tokens, str) else None
    text = known or Tokeniser.fit(kept, tokens, end=len(kept) > 1 and not asked.whole)
    if asked.whole:
        return _whole(kept, text, name, where, asked)
    kept, whole = _ordered(kept)
    tape, ends = _tape(kept, text)
    length = asked.length or max(1, min(LENGTHS[text.kind], len(tape) // LEAST_WINDOWS))
    count = len(tape) // length
    if not count:
        raise SfumatoError(
            f"{where} holds {len(tape):,} symbols, fewer than one window of {length:,}: take more text, or train with "
            "a lower --length"
        )
    x = torch.from_numpy(tape[: count * length].reshape(count, 1, length))
    units, groups = _places(ends, count, length, whole)
    notes = [
        f"{counted(len(kept), 'text', 'texts')} of {sum(map(len, kept)):,} characters in all, as {text.describe()} "
        f"(--tokens): {counted(count, 'window')} of {counted(length, 'symbol')} (--length). Held out are "
        f"{'whole documents' if whole else 'its last windows'}."
    ]
    if left := len(tape) - count * length:
        notes.append(f"Left out at the end, where no window is full: {counted(left, 'symbol')}.")
    top = text.size - 1.0
    return Source(x, "text", name, notes=notes, groups=groups, bounds=(0.0, top), units=units, text=text)


def _whole(documents: list[str], text: Tokeniser, name: str, where: str, asked: Asked) -> Source:
    """Each document as a sample, filled up by the number `text.size`; equal ones are held out together."""
    rows = [torch.from_numpy(text.encode(each)) for each in documents]
    longest = max(map(len, rows))
    length = asked.length or longest
    if longest > length:
        raise SfumatoError(
            f"{where} holds a text of {longest:,} symbols, and whole texts have at most {length:,} here: leave it out, "
            "or train with a higher --length"
        )
    x = torch.full((len(rows), 1, length), text.size, dtype=torch.int32)
    for row, numbers in zip(x[:, 0], rows, strict=True):
        row[: len(numbers)] = numbers
    notes = [
        f"{counted(len(rows), 'text', 'texts')} of up to {counted(longest, 'symbol')}, as {text.describe()} "
        "(--tokens): each is a sample of its own length."
    ]
    groups = [_hash(each).hex() for each in documents]
    return Source(x, "text", name, notes=notes, groups=groups, bounds=(0.0, float(text.size)), text=text)


def _clean(text: str, where: str) -> str:
    """The text with line feeds alone; SfumatoError for what is no text."""
    text = text.removeprefix(_BOM).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text or END in text:
        which = "NUL" if "\0" in text else "end-of-text (3)"
        raise SfumatoError(f"{where} has {which} bytes, which are no text: is it a binary file?")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SfumatoError(f"{where} has half a character, {text[error.start]!a}: save it as UTF-8") from None
    return text


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SfumatoError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start:,}): convert it, as "
            "`iconv -f LATIN1 -t UTF-8` does"
        ) from None
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _lines(path: Path, key: str) -> Iterator[str]:
    """The texts under a key, one of each line of JSON."""
    for number, line in enumerate(_read(path).removeprefix(_BOM).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise SfumatoError(f"{path}, line {number:,} is not JSON: each line must be one object") from None
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict) and isinstance(found.get(key), str):
            yield found[key]
        else:
            keys = ", ".join(map(str, found))[:200] if isinstance(found, dict) else type(found).__name__
            raise SfumatoError(f"{path}, line {number:,} has no text under {key!r}: name it by --key ({keys})")


def _require_memory(nbytes: int, where: str) -> None:
    if not fits(COST * nbytes):
        raise SfumatoError(f"{where} holds {nbytes / 2**30:.1f} GiB, which do not fit into memory: train on a part")


def _ordered(documents: list[str]) -> tuple[list[str], bool]:
    """The documents in the order of the tape, and whether they are held out whole."""
    total = sum(map(len, documents))
    if len(documents) < BY_DOCUMENT or max(map(len, documents)) > total / 4:
        return documents, False
    return sorted(documents, key=_hash), True


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _tape(documents: Sequence[str], text: Tokeniser) -> tuple[np.ndarray, np.ndarray]:
    """All documents as numbers, and where each of them ends; equal ones that are neighbours end together."""
    end = text.encode(END) if len(documents) > 1 else np.empty(0, np.int64)
    dtype = np.uint8 if text.size <= 256 else np.int32
    parts = [np.concatenate([text.encode(each), end]).astype(dtype) for each in documents]
    ends = np.cumsum([len(part) for part in parts])
    for i in reversed(range(len(documents) - 1)):
        if documents[i] == documents[i + 1]:
            ends[i] = ends[i + 1]
    return np.concatenate(parts), ends


def _places(ends: np.ndarray, count: int, length: int, whole: bool) -> tuple[list[float], list[str]]:
    """(place of each window in [0, 1), its group): held out is what stands before the fraction.

    The place is that of the middle of the document in which a window ends, so that a window of two documents is held
    out only if both are.
    """
    if not whole:
        return [(count - 1 - k) / count for k in range(count)], [str(k) for k in range(count)]
    ends = np.unique(ends)
    starts = np.concatenate([[0], ends[:-1]])
    last = np.searchsorted(ends, np.arange(1, count + 1) * length - 1, side="right")
    middle = (starts + ends) / (2 * ends[-1])
    return middle[last].tolist(), [f"document {starts[i]}" for i in last]
