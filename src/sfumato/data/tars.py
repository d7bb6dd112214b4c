"""Archives of pictures, as WebDataset writes them: shards (.tar) whose members 0007.jpg and 0007.cls are one sample.

An archive is walked once, and the offsets of its pictures are cached: from then on any picture is read at once. A label
is the text of a .cls member or a field of a .json member, whose other fields are conditions, and a caption the text of
a .txt or .caption member; without any label, the folders within are the classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, final

from .. import cache, schema
from ..errors import SfumatoError
from ..files import reason
from ..progress import counting
from . import captions
from .images import IMAGE_SUFFIXES, Items, hidden, together
from .source import LABEL
from .tar_members import members

LABEL_FIELDS = ("label", "cls", "class", "class_name", "category", "target", "y")
_CAPTIONS = tuple(ending.removeprefix(".") for ending in captions.ENDINGS)
_INDEX = 4  # version of the cached index: another number ignores older ones
_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json
_LARGEST_NUMBER, _LONGEST_WORD = 18, 1000  # digits, characters of a label
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd start
Index = dict[str, Any]


@final
class Tars(Items):
    """The pictures of some archives.

    fields: name -> one value a picture, or None; labels are under "label". odd: (member, reason) of those not used.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.where = list(paths), together(paths)
        self._key = cache.stamps(self.paths)
        with counting("Walking archives, members") as count:
            indices = [_index(path, key, count) for path, key in zip(self.paths, self._key, strict=True)]
        self.places = [(shard, *place) for shard, index in enumerate(indices) for place in index["pictures"]]
        self.members = [place[1] for place in self.places]
        repeated = len(set(self.members)) < len(self.members)  # each shard may count from 0
        self.names = [f"{self.paths[shard].name}/{name}" if repeated else name for shard, name, *_ in self.places]
        found: list[dict[str, Any]] = [place[4] for place in self.places]
        self.fields = {name: [each.get(name) for each in found] for name in dict.fromkeys(n for f in found for n in f)}
        bare = self.fields.get(LABEL, []).count(None)
        self.notes = [f"{bare:,} of {len(found):,} pictures have no label."] if bare else []
        self.odd = [(f"{path.name}/{name}", why) for path, index in zip(self.paths, indices, strict=True)
                    for name, why in index["odd"]]  # fmt: skip

    def read(self, number: int) -> bytes:
        shard, name, offset, size, _ = self.places[number]
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise SfumatoError(f"{self.paths[shard]} cannot be read any more: {reason(error)}") from None
        if len(data) < size:
            raise SfumatoError(f"{self.paths[shard]} was cut short since it was opened: {name} is incomplete")
        return data

    @property
    def nbytes(self) -> int:
        return sum(place[3] for place in self.places)

    def key(self) -> Any:
        return self._key


def expand(text: str) -> list[Path]:
    """The files of a pattern such as photos-{000..012}.tar, photos-{a,b}.tar, photos-*.tar; [] of any other text.

    SfumatoError names the first that is missing.
    """
    if not re.search(r"[*?\[]|\{.*\}", text):
        return []
    paths = []
    for part in _braces(text):
        path = Path(part).expanduser()
        if re.search(r"[*?\[]", path.name):
            found = sorted(path.parent.glob(path.name))
            if not found:
                raise SfumatoError(f"no file is named {part}")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise SfumatoError(f"{path}, of {text}, does not exist")
    return paths


def _braces(text: str) -> list[str]:
    pieces = re.split(r"(\{[^{}]*\})", text)
    choices = []
    for piece in pieces:
        numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        if numbers:
            first, last = numbers.groups()
            choices.append([f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)])
        else:
            choices.append(piece[1:-1].split(",") if piece.startswith("{") else [piece])
    return ["".join(chosen) for chosen in product(*choices)]


def _index(path: Path, key: list[Any], count: Callable[[], None]) -> Index:
    found: Index = cache.remembered(cache.identity(["tar", _INDEX, key]), lambda: _walk(path, count))
    return found


def _walk(path: Path, count: Callable[[], None]) -> Index:
    """{"pictures": [(name, offset, bytes, fields)], "odd": [(name, reason)]} of one archive, in its order.

    count: called for each member.
    """
    pictures: list[tuple[str, str, int, int]] = []
    fields: dict[str, dict[str, Any]] = {}
    odd: list[tuple[str, str]] = []
    try:
        with path.open("rb") as file:
            for member in members(file, path.stat().st_size):
                count()
                name = PurePosixPath(member.name)
                if member.is_folder or hidden(name):
                    continue
                if not (member.is_file and member.size):
                    odd.append((member.name, "it is empty" if member.is_file else "no plain file"))
                    continue
                sample, _, ending = name.name.partition(".")
                place = str(name.parent / sample)
                if name.suffix.lower() in IMAGE_SUFFIXES:
                    pictures.append((place, member.name, member.offset, member.size))
                elif ending.lower() in ("cls", "json", *_CAPTIONS) and member.size <= _LARGEST_LABEL:
                    file.seek(member.offset)
                    found = _parsed(file.read(member.size), ending.lower())
                    if not found:
                        odd.append((member.name, _nothing(ending.lower())))
                    elif ending.lower() != "json":  # a label or caption of its own comes before that of a .json
                        fields[place] = fields.get(place, {}) | found
                    else:
                        fields[place] = found | fields.get(place, {})
                else:
                    odd.append((member.name, "neither a picture nor its label or caption (.cls, .json, .txt)"))
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {reason(error)}") from None
    except ValueError as why:
        raise SfumatoError(_refusal(path, str(why))) from None
    return _joined(pictures, fields, odd)


def _joined(
    pictures: list[tuple[str, str, int, int]], fields: dict[str, dict[str, Any]], odd: list[tuple[str, str]]
) -> Index:
    """The index: pictures with their fields; where few samples have several pictures the shortest name is kept."""
    counts = Counter(place for place, *_ in pictures)
    paired = 2 * sum(count > 1 for count in counts.values()) > len(counts)  # `names` tells them apart
    simplest: dict[str, str] = {}
    for place, name, *_ in pictures:
        if place not in simplest or len(name) < len(simplest[place]):
            simplest[place] = name
    kept = []
    for place, name, offset, size in pictures:
        if not paired and place in fields and counts[place] > 1 and simplest[place] != name:
            odd.append((name, f"another picture of the sample {simplest[place]}"))
        else:
            kept.append((name, offset, size, fields.get(place, {})))
    known = {place for place, *_ in pictures}
    odd += [(place, "a label or caption without its picture") for place in fields if place not in known]
    return {"pictures": kept, "odd": odd}


def _parsed(data: bytes, kind: str) -> dict[str, Any]:
    """A label, a caption, or the fields of a .json, of which the first of `LABEL_FIELDS` becomes the label."""
    if kind in _CAPTIONS:
        with suppress(ValueError):
            return {captions.NAME: text} if (text := captions.decoded(data)) else {}
        return {}
    text = data.decode("utf-8", "replace").strip()
    try:
        value = text if kind == "cls" else schema.json_of(text, kind)
        if not isinstance(value, dict):
            return {} if (label := _label(value)) is None else {LABEL: label}
        for name in LABEL_FIELDS:
            if (label := _label(value.get(name))) is not None:
                return {LABEL: label} | {other: cell for other, cell in value.items() if other not in (name, LABEL)}
        return value
    except (SfumatoError, ValueError):
        return {}


def _nothing(kind: str) -> str:
    """Why a member that says something of a picture is not used."""
    if kind in _CAPTIONS:
        return "it holds no caption: it is empty, too long or no UTF-8 text"
    return f"it holds no label, such as one under {LABEL_FIELDS[0]!r}"


def _label(value: Any) -> int | str | None:
    """A label: a word or a whole number, also one written as text; None for anything else. ValueError if too long."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    if len(word := str(value)) > _LONGEST_WORD:
        raise ValueError(f"its label has {len(word):,} characters")
    return int(value) if re.fullmatch(rf"-?[0-9]{{1,{_LARGEST_NUMBER}}}", word) else word


def _refusal(path: Path, why: str) -> str:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(_PACKED):
        return f"{path} is compressed, so that no picture in it can be found at once: unpack it to a plain .tar"
    return f"{path} is no whole .tar archive ({why}): copy or make it again"
