"""The members of a .tar archive, without their contents: POSIX ustar and pax, and GNU's long names.

Python's tarfile trusts headers: it reads gigabytes of a name where one claims them, calls itself for every long name,
and takes three times as long. Here a name is bounded, and the time proportional to the number of members.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_LARGEST_NAME = 1 << 20  # bytes of a header that holds a long name or pax records
_REGULAR, _SPARSE, _FOLDER = (b"0", b"\0", b"7"), b"S", b"5"
_NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", (b"x", b"X"), b"g"


class Member(NamedTuple):
    """A member: its name, whether it is a plain file or a folder, and the place of its contents."""

    name: str
    is_file: bool
    is_folder: bool
    offset: int
    size: int


def members(file: BinaryIO, total: int) -> Iterator[Member]:
    """The members of an open archive of `total` bytes, in order. Raises ValueError where it is damaged or cut short."""
    position: int = 0
    longer: dict[str, str] = {}
    while any(block := _read(file, position, BLOCK)):
        kind, size = block[156:157], _number(block[124:136])
        _check(block, position)
        position += BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, *_PAX, _GLOBAL_PAX):
            longer |= _longer(kind, _read(file, position, _bounded(size, total - position, _LARGEST_NAME)))
        else:
            if kind == _SPARSE:
                position += _maps(file, position, block)
            name = longer.get("path") or _name(block)
            size = 0 if kind in _NO_DATA else _bounded(_decimal(longer.get("size"), size), total - position)
            folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
            sparse = any(key.startswith("GNU.sparse") for key in longer)
            yield Member(name, kind in _REGULAR and not folder and not sparse, folder, position, size)
            longer = {}
        position += -(-size // BLOCK) * BLOCK


def _maps(file: BinaryIO, position: int, header: bytes) -> int:
    """The size of the blocks behind the header of a sparse file that say more of where its holes are."""
    start, more = position, header[482]
    while more:
        more = _read(file, position, BLOCK)[504]
        position += BLOCK
    return position - start


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("its end is missing")
    return data


def _check(block: bytes, position: int) -> None:
    """Raise ValueError unless a header has its checksum: the sum of its bytes, with blanks for the sum itself."""
    if sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156]):
        raise ValueError(f"the header at byte {position:,} is damaged")


def _number(digits: bytes) -> int:
    """A number of a header: octal digits, or bytes after a first one of 128."""
    if digits[0] & 0x80:
        return int.from_bytes(bytes([digits[0] & 0x7F]) + digits[1:], "big")
    try:
        return int(digits.replace(b"\0", b" ").strip() or b"0", 8)
    except ValueError:
        raise ValueError("a header holds no number where one belongs") from None


def _decimal(digits: str | None, default: int) -> int:
    """A size in a pax record, if it has one."""
    if digits is None:
        return default
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError("a pax header holds no size where one belongs")
    return int(digits)


def _bounded(size: int, left: int, most: int | None = None) -> int:
    """The size that a header claims, if the archive has as many bytes left and the most allows it."""
    if not 0 <= size <= left:
        raise ValueError(f"a header claims {size:.3g} bytes where {left:,} are left")
    if most is not None and size > most:
        raise ValueError(f"a header claims a name of {size:,} bytes")
    return size


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _longer(kind: bytes, data: bytes) -> dict[str, str]:
    """What a header says of the member after it: its path, its size, whether it is sparse."""
    if kind == _LONG_NAME:
        return {"path": _text(data)}
    return _records(data) if kind in _PAX else {}


def _records(data: bytes) -> dict[str, str]:
    """The records of a pax header, each "LENGTH key=value" and a newline."""
    found, position = {}, 0
    while position < len(data) and data[position]:
        length, blank, _ = data[position : position + 12].partition(b" ")
        if not (blank and length.isdigit() and int(length) > len(length) + 1):
            raise ValueError("a pax header is damaged")
        key, _, value = data[position + len(length) + 1 : position + int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        position += int(length)
    return found
