"""Reader for PNG with colour or alpha at 16 bits per channel, which Pillow reads only at 8 bits.

The PNG specification (W3C, third edition), sections 9 (filters) and 10 (compression). Interlaced files are left to
Pillow.
"""

import struct
import zlib
from typing import BinaryIO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {2: 3, 4: 2, 6: 4}  # colour type -> channels: RGB, grey with alpha, RGBA


def channels(file: BinaryIO) -> int:
    """3 or 4 if the file is a PNG for this reader (grey with alpha is read as RGBA, so 4), else 0."""
    head = file.read(29)
    file.seek(0)
    if len(head) < 29 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        return 0
    depth, colour, interlaced = head[24], head[25], head[28]
    if depth != 16 or colour not in COLOURS or interlaced:
        return 0
    return 3 if colour == 2 else 4


def read(packed: bytes, size: tuple[int, int]) -> np.ndarray:
    """The pixels uint16 (H, W, 3 or 4) of a PNG of this (height, width). Raises ValueError for a damaged file."""
    width, height, colour, data = _chunks(packed)
    if (height, width) != size:
        raise ValueError(f"it is of {width:,} x {height:,} pixels, not of the {size[1]:,} x {size[0]:,} it was")
    bytes_per_pixel = 2 * COLOURS[colour]
    raw = _inflated(data, height * (1 + width * bytes_per_pixel))
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    flat = _unfilter(rows[:, 0], rows[:, 1:].reshape(height, width, bytes_per_pixel))
    pixels = flat.reshape(height, width, -1, 2).view(">u2")[..., 0].astype(np.uint16)
    return pixels if colour != 4 else pixels[:, :, [0, 0, 0, 1]]


def _inflated(data: bytes, nbytes: int) -> bytes:
    """The pixel data, of exactly this size: a few bytes may inflate to gigabytes, so no more are ever asked for."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, nbytes)
        more = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(f"its pixel data are damaged ({error})") from None
    if len(raw) != nbytes or more:
        raise ValueError("its pixel data are incomplete" if not more else "its pixel data are more than its size holds")
    return raw


def _chunks(data: bytes) -> tuple[int, int, int, bytes]:
    """(width, height, colour type, joined IDAT); every chunk's checksum is verified."""
    position, pieces, header = len(SIGNATURE), [], None
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        end = position + 8 + length
        if end + 4 > len(data) or zlib.crc32(name + body) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError("it is truncated or damaged")
        if name == b"IHDR":
            header = struct.unpack_from(">IIBB", body)
        elif name == b"IDAT":
            pieces.append(body)
        elif name == b"IEND":
            break
        position = end + 4
    else:
        raise ValueError("it is truncated or damaged")
    if header is None:
        raise ValueError("it has no header")
    return header[0], header[1], header[3], b"".join(pieces)


def _unfilter(kinds: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """Undo the five row filters: kinds (H,), filtered (H, W, bytes a pixel) uint8 -> bytes of the same shape.

    A pixel needs its left, upper and upper-left neighbours, so pixels (i, j) with the same i + j are independent:
    the loop runs over the H + W - 1 diagonals, and each diagonal is computed at once.
    """
    if kinds.max(initial=0) > 4:
        raise ValueError("it uses an unknown row filter")
    height, width, size = filtered.shape
    out = np.zeros((height + 1, width + 1, size), np.uint8)  # padded with one row and one column of zeros
    for diagonal in range(height + width - 1):
        i = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        j = diagonal - i
        left, up, corner = (out[at].astype(np.int16) for at in ((i + 1, j), (i, j + 1), (i, j)))
        kind = kinds[i][:, None]
        guess = np.select(
            [kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) // 2, _paeth(left, up, corner)], 0
        )
        out[i + 1, j + 1] = (filtered[i, j] + guess) & 255
    return out[1:, 1:]


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Whichever neighbour is nearest to left + up - corner; ties in the order left, up, corner."""
    estimate = left + up - corner
    to_left, to_up, to_corner = (abs(estimate - neighbour) for neighbour in (left, up, corner))
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
