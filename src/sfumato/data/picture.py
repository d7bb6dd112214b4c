"""Read and resize one image file: its header, and its pixels as stored.

Only the formats of `FORMATS` are ever opened, whatever a file is named: others may start programs. Pillow's modes 1 and
L have one channel, RGB and palettes three, everything with transparency four; I;16 has 16 bits, I and F have 32.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ..errors import SfumatoError
from . import limits, png16

# names of Pillow's readers; TGA has no signature, so it comes last
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
ORIENTATION = 0x0112  # the EXIF tag
_START = 16  # bytes by which Pillow's readers know their format
_COPIES = 3  # of the pixels while they are decoded, about
_AT_ONCE = 2**30  # bytes that pictures decoded at once may take together, unless one alone takes more
_LARGEST = 1 << 16  # pixels of a side
FULL = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True, slots=True)
class Header:
    """An image before its pixels are read; height and width are after EXIF rotation."""

    name: str
    height: int
    width: int
    channels: int
    depth: str
    frames: int = 1

    @property
    def memory(self) -> int:
        """Bytes that decoding takes, about."""
        return _COPIES * self.height * self.width * self.channels * np.dtype(self.depth).itemsize


def read_header(file: BinaryIO, name: str, most: float = limits.DEFAULT_GB * 2**30) -> Header:
    """Size, channels and bit depth before decoding. Raises Pillow's errors for a file that is not an image.

    most: bytes of memory that decoding may take; SfumatoError if it takes more.
    """
    if not file.read(1):
        raise ValueError("the file is empty")
    file.seek(0)
    colour16 = png16.channels(file)
    with opened(file, most) as image:
        width, height = image.size
        depth = "uint16" if colour16 else _depth(image)
        header = Header(name, height, width, colour16 or _channels(image), depth, getattr(image, "n_frames", 1))
        limits.require(header.memory, most, f"a picture of {width:,} x {height:,} pixels")
        with _ROOM.taking(header.memory):  # the EXIF of a PNG may come after its pixels, which are then decoded
            turned = image.getexif().get(ORIENTATION, 1) >= 5
    return replace(header, height=width, width=height) if turned else header


def opened(file: BinaryIO, most: float = limits.DEFAULT_GB * 2**30) -> Image.Image:
    """The image of an open file, of one of `FORMATS`, its pixels not yet decoded. Raises ValueError if it is none.

    most: as of `read_header`; only icons, which are decoded when they are opened, may raise SfumatoError here.

    Not by `Image.open`, which warns of large pictures and refuses larger ones, whatever limit is set here.
    """
    Image.init()
    start = file.read(_START)
    _require_icon(file, start, most)
    for factory, accept in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        if accept is None or accept(start) is True:
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # as in `Image.open`: it is of another
                return factory(file, "")
    raise ValueError("it is not an image, or of a kind that cannot be read")


def _require_icon(file: BinaryIO, start: bytes, most: float) -> None:
    """Raise SfumatoError if a picture within an icon (.ico), of which the directory says nothing true, is too large."""
    if not start.startswith(b"\0\0\1\0") or len(start) < 6:
        return
    file.seek(6)
    directory = file.read(16 * struct.unpack_from("<H", start, 4)[0])
    for (place,) in struct.iter_unpack("<12xI", directory[: len(directory) // 16 * 16]):
        file.seek(place)
        head = file.read(24)
        if len(head) == 24:
            png = head.startswith(png16.SIGNATURE)
            width, height = struct.unpack(">II", head[16:]) if png else struct.unpack("<4xII12x", head)
            limits.require(_COPIES * 4 * width * height, most, f"a picture of {width:,} x {height:,} pixels")


class _Room:
    """Memory that threads take in turn when together they would take more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._changed = most, 0, threading.Condition()

    @contextmanager
    def taking(self, nbytes: int) -> Iterator[None]:
        """Wait until there is room for `nbytes`; one alone always has room."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= self._most)
            self._taken += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= nbytes
                self._changed.notify_all()


_ROOM = _Room(_AT_ONCE)


def _channels(image: Image.Image) -> int:
    if image.has_transparency_data:
        return 4
    return 1 if image.mode in ("1", "L", "F") or image.mode.startswith("I") else 3


def _depth(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode == "I":  # Pillow's older reading of 16-bit PNG and PGM, and true 32-bit TIFF
        return "uint16" if image.format in ("PNG", "PPM") else "int32"
    return "float32" if image.mode == "F" else "uint8"


def decode(file: BinaryIO, header: Header, channels: int, depth: str, target: tuple[int, int] | None) -> np.ndarray:
    """The pixels (channels, height, width) at this depth; `target` = (height, width) resizes and crops."""
    with _ROOM.taking(header.memory):
        pixels = _stored(file, header)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        pixels = _deepen(_widen(pixels, channels, FULL.get(header.depth, 1)), header.depth, depth)
        if target is not None:
            pixels = fit_cover(pixels, target)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _stored(file: BinaryIO, header: Header) -> np.ndarray:
    """The pixels (H, W) or (H, W, C) as stored; never more of them than the header has declared."""
    if png16.channels(file):
        return png16.read(file.read(), (header.height, header.width))
    with opened(file, 4 * header.memory) as image:
        _require_size(sorted(image.size), sorted((header.width, header.height)))
        ImageOps.exif_transpose(image, in_place=True)
        _require_size(image.size, (header.width, header.height))
        return np.asarray(_standard(image, header.channels))


def _require_size(found: Sequence[int], declared: Sequence[int]) -> None:
    if tuple(found) != tuple(declared):
        raise ValueError(f"it decodes to {tuple(found)}, not to the {tuple(declared)} (width, height) it declares")


def _standard(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L, RGB or RGBA; images of 16 or 32 bits are unchanged."""
    if image.mode == "F" or image.mode.startswith("I"):
        return image
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _widen(pixels: np.ndarray, channels: int, opaque: int) -> np.ndarray:
    """(H, W, c) -> (H, W, channels): grey is repeated over the colours, a missing alpha is opaque."""
    if pixels.shape[2] == channels:
        return pixels
    colours = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    if channels == 3:
        return colours
    return np.concatenate([colours, np.full_like(colours[:, :, :1], opaque)], axis=2)


def _deepen(pixels: np.ndarray, stored: str, depth: str) -> np.ndarray:
    """Scale 8-bit pixels for a 16-bit set: x 257 maps 0..255 onto 0..65535 exactly. Other depths are not mixed."""
    if stored == "uint8" and depth == "uint16":
        return pixels.astype(np.uint16) * np.uint16(257)
    if depth == "uint16" and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError(f"its values run from {pixels.min()} to {pixels.max()}, beyond 16 bits")
    if depth == "float32" and np.isinf(pixels).any():
        raise ValueError("it holds infinite values")
    if depth == "float32" and np.isnan(pixels).all():
        raise ValueError("it holds no number, all are missing (NaN)")
    return pixels.astype(depth, copy=False)


def fit_cover(pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (h, w, C): resized to just cover the target (Lanczos, antialiased) and cropped at the centre."""
    height, width = pixels.shape[:2]
    if (height, width) == tuple(target):
        return pixels
    if pixels.dtype.kind == "f" and np.isnan(pixels).any():
        raise ValueError(f"it has missing values (NaN) and {width} x {height} pixels, and is not resized")
    scale = max(target[0] / height, target[1] / width)
    # the centred part of the picture that the target shows, in source pixels
    shown_h, shown_w = min(height, target[0] / scale), min(width, target[1] / scale)
    top, left = (height - shown_h) / 2, (width - shown_w) / 2
    box = (left, top, left + shown_w, top + shown_h)
    size = (target[1], target[0])
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3, 4):
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        resized = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))
        return resized.reshape(*target, -1)
    planes = [
        np.asarray(Image.fromarray(pixels[:, :, c].astype(np.float32)).resize(size, Image.Resampling.LANCZOS, box=box))
        for c in range(pixels.shape[2])
    ]
    result = np.stack(planes, axis=2)
    if pixels.dtype.kind == "f":
        return result.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    return np.clip(np.rint(result.astype(np.float64)), limits.min, limits.max).astype(pixels.dtype)


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """`size` as (height, width); one number is a square. Raises SfumatoError unless both are from 1 to 65536."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and 0 < side <= _LARGEST for side in pair):
        raise SfumatoError(
            f"size must be one number of pixels from 1 to {_LARGEST}, or (height, width), but it is {size!r:.80}"
        )
    return pair[0], pair[1]
