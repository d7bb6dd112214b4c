"""Read and resize one image file: its header, and its pixels as stored.

Pillow's modes 1 and L have one channel, RGB and palettes three, everything with transparency four; I;16 has 16 bits, I
and F have 32.
"""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import SfumatoError
from . import png16

ORIENTATION = 0x0112  # the EXIF tag
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


def read_header(file: BinaryIO, name: str) -> Header:
    """Size, channels and bit depth without decoding. Raises Pillow's errors for a file that is not an image."""
    if not file.read(1):
        raise ValueError("the file is empty")
    file.seek(0)
    colour16 = png16.channels(file)
    with _opened(file) as image:
        width, height = image.size
        if image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
        depth = "uint16" if colour16 else _depth(image)
        return Header(name, height, width, colour16 or _channels(image), depth, getattr(image, "n_frames", 1))


def _opened(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        raise ValueError("it is not an image, or of a kind that cannot be read") from None


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
    if png16.channels(file):
        pixels = png16.read(file.read())
    else:
        with _opened(file) as opened:
            image = ImageOps.exif_transpose(opened)
            pixels = np.asarray(_standard(image, header.channels))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    pixels = _deepen(_widen(pixels, channels, FULL.get(header.depth, 1)), header.depth, depth)
    if target is not None:
        pixels = fit_cover(pixels, target)
    elif pixels.shape[:2] != (header.height, header.width):
        raise ValueError(f"it decodes to {pixels.shape[:2]}, not to the {(header.height, header.width)} it declares")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _standard(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L, RGB or RGBA; images of 16 or 32 bits are unchanged."""
    if image.mode == "F" or image.mode.startswith("I"):
        return image
    return image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])


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
    if depth == "float32" and not np.isfinite(pixels).all():
        raise ValueError("it holds NaN or infinite values")
    return pixels.astype(depth)


def fit_cover(pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (h, w, C): resized to just cover the target (Lanczos, antialiased) and cropped at the centre."""
    height, width = pixels.shape[:2]
    if (height, width) == tuple(target):
        return pixels
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
