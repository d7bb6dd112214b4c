"""Arrow files: a stream of messages, as `datasets` saves it, or one within a file with an index (.feather).

The index is not used, so that what is measured here and what pyarrow then reads are the same messages. Their layout is
that of Arrow's specification (Message.fbs, Schema.fbs), in the encoding of FlatBuffers.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from . import limits

_MAGIC = b"ARROW1\0\0"  # before the stream in a file with an index
_DICTIONARY, _BATCH = 2, 3  # kinds of messages that have buffers


def read_arrow(path: Path) -> Any:
    """The table of an Arrow file, mapped. Raises errors of pyarrow, and SfumatoError if unpacked it is too large."""
    import pyarrow as pa

    with path.open("rb") as file:
        start = len(_MAGIC) if file.read(len(_MAGIC)) == _MAGIC else 0
    mapped = pa.memory_map(str(path))
    mapped.seek(start)
    limits.require_file(path, _unpacked(pa, mapped))
    mapped.seek(start)
    return pa.ipc.open_stream(mapped).read_all()


def _unpacked(pa: Any, stream: Any) -> int:
    """Bytes of all compressed buffers once they are unpacked; those that are not compressed stay in the file."""
    messages = pa.ipc.MessageReader.open_stream(stream)
    return sum(_of_message(each.metadata.to_pybytes(), each.body) for each in messages)


def _of_message(head: bytes, body: Any) -> int:
    """The same of one message: each compressed buffer starts with its size, or -1 if it is stored as it is."""
    message = _follow(head, 0)
    kind, batch = _field(head, message, 1), _field(head, message, 2)
    if not kind or not batch or head[kind] not in (_DICTIONARY, _BATCH):
        return 0
    batch = _follow(head, batch)
    if head[kind] == _DICTIONARY:
        batch = _follow(head, _field(head, batch, 1))
    if not _field(head, batch, 3):  # no compression
        return 0
    buffers = _follow(head, _field(head, batch, 2))
    (count,) = struct.unpack_from("<I", head, buffers)
    places = struct.iter_unpack("<qq", head[buffers + 4 : buffers + 4 + 16 * count])
    return sum(max(0, *struct.unpack_from("<q", body, offset)) for offset, length in places if length)


def _follow(head: bytes, at: int) -> int:
    """The place that the offset at this place points to."""
    return at + int(struct.unpack_from("<I", head, at)[0])


def _field(head: bytes, table: int, number: int) -> int:
    """The place of a field of a table; 0 if the table does not have it."""
    fields = table - struct.unpack_from("<i", head, table)[0]
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", head, fields)[0]:
        return 0
    offset = int(struct.unpack_from("<H", head, fields + entry)[0])
    return table + offset if offset else 0
