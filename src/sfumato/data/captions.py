"""Captions in files beside pictures: 0001.txt or 0001.caption says what is on 0001.png, in the same folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..files import reason
from .column import Column, column

NAME = "caption"  # the condition
ENDINGS = (".caption", ".txt")  # of two files of one picture the first counts
_LARGEST = 1 << 16  # bytes of a caption


class Captions(NamedTuple):
    """The captions of pictures, None where no picture has one; their files; (file, reason) of those not used."""

    column: Column | None
    files: set[Path]
    odd: list[tuple[str, str]]


def beside(root: Path, pictures: Sequence[str], files: Iterable[Path]) -> Captions:
    """The captions among files, for pictures by their paths relative to the root."""
    places = {path.relative_to(root).as_posix(): path for path in files if path.suffix.lower() in ENDINGS}
    folded = {_stem(name) + PurePosixPath(name).suffix.lower(): path for name, path in places.items()}
    found = Captions(None, set(), [])
    texts: list[str | None] = []
    for picture in pictures:
        own = [folded[stem + ending] for stem in _stems(picture) for ending in ENDINGS if stem + ending in folded]
        texts.append(_read(root, own[0], found) if own else None)
        found.files.update(own)
    return found if not any(texts) else found._replace(column=column(texts))


def decoded(data: bytes) -> str:
    """The text of a caption. ValueError with the reason if it is none."""
    if len(data) > _LARGEST:
        raise ValueError(f"it is too long for a caption, {len(data):,} bytes")
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None


def _read(root: Path, path: Path, found: Captions) -> str | None:
    try:
        with path.open("rb") as file:
            return decoded(file.read(_LARGEST + 1)) or None
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        found.odd.append((path.relative_to(root).as_posix(), why))
        return None


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _stems(picture: str) -> list[str]:
    """The path of a picture without its last ending, and without all of them (0001.input.png)."""
    path = PurePosixPath(picture)
    return list(dict.fromkeys([_stem(picture), str(path.with_name(path.name.partition(".")[0]))]))
