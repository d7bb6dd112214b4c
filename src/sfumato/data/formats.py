"""The common format of a set of pictures: what most of them have decides, and the odd ones are converted or left out.

size: that of more than half of the pictures, where its shorter side is at most 64 or nine in ten have it; otherwise a
centred square of min(64, the shorter side that nine in ten reach). channels, depth: those of more than half, otherwise
the most channels and bits of any. An alpha channel that never changes is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

import numpy as np

from ..errors import SfumatoError, counted
from . import picture
from .names import listed
from .picture import FULL, Header, check_size

MAX_DEFAULT_SIDE = 64
NEARLY_ALL = 0.9
SPECK = 4  # pictures that would be enlarged more than so many times have nothing to show
Size = int | tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class ImageFormat:
    """channels, depth and (height, width) of each picture; target None: that of all already.

    opaque: whether an alpha channel was dropped. smallest: pictures with a shorter side below it are left out.
    """

    channels: int
    depth: str
    target: tuple[int, int] | None
    opaque: bool
    smallest: float = field(compare=False)

    @classmethod
    def of(cls, headers: Sequence[Header], size: Size | None, opaque: bool = False) -> ImageFormat:
        channels = [3 if opaque and h.channels == 4 else h.channels for h in headers]
        sides = sorted(min(h.height, h.width) for h in headers)
        smallest = min(MAX_DEFAULT_SIDE, sides[len(sides) // 2]) / SPECK
        common = _most(channels)
        return cls(common or max(channels), _common_depth(headers), _target(headers, size), opaque, smallest)

    def left_out(self, header: Header) -> str:
        """Why a picture cannot be one of this set; empty if it can."""
        if header.depth != self.depth and not {header.depth, self.depth} <= FULL.keys():
            return f"its values are {header.depth}, and those of most images {self.depth}"
        if min(header.height, header.width) < self.smallest:
            return f"{header.height} x {header.width} pixels, far smaller than most images"
        return ""

    def notes(self, headers: Sequence[Header], size: Size | None) -> list[str]:
        """Sentences on what was changed."""
        notes = []
        changed = [h for h in headers if self.target not in (None, (h.height, h.width))]
        if self.target is not None and changed:
            few = len(changed) <= (1 - NEARLY_ALL) * len(headers)
            named = f" ({listed(f'{h.name}, {h.height} x {h.width}' for h in changed)})" if few else ""
            why = "as asked" if size is not None else "because the images have different sizes (--size sets another)"
            were = "was" if len(changed) == 1 else "were"
            notes.append(
                f"{len(changed):,} of {len(headers):,} images {were} resized to cover {self.target[0]} x "
                f"{self.target[1]} and cropped at the centre, {why}{named}."
            )
        if self.opaque:
            notes.append("The alpha channel never changes and was dropped.")
        kept = [(h, 3 if self.opaque and h.channels == 4 else h.channels) for h in headers]
        if fewer := [h for h, channels in kept if channels < self.channels]:
            notes.append(f"{_images(fewer, 'with fewer channels ')} promoted to {self.channels}.")
        if more := [h.name for h, channels in kept if channels > self.channels]:
            white = "; what is transparent is laid over white" if any(channels == 4 for _, channels in kept) else ""
            notes.append(
                f"{_images(more)} reduced to {_channels(self.channels)}, as most have ({listed(more)}){white}."
            )
        if deeper := [h.name for h in headers if h.depth != self.depth and self.depth == "uint8"]:
            notes.append(f"{_images(deeper, 'of 16 bits ')} scaled to 8 bits, as most have ({listed(deeper)}).")
        if flatter := [h for h in headers if h.depth != self.depth and self.depth == "uint16"]:
            notes.append(f"{_images(flatter, 'of 8 bits ')} scaled to 16 bits (x 257).")
        if films := sum(h.frames > 1 for h in headers):
            notes.append(f"{counted(films, 'image has', 'images have')} several frames, of which the first is used.")
        return notes


def _images(which: Sequence[object], of: str = "") -> str:
    return counted(len(which), f"image {of}was", f"images {of}were")


def _channels(number: int) -> str:
    return counted(number, "channel", "channels")


def settled(
    headers: Mapping[int, Header], size: Size | None, opaque: bool
) -> tuple[ImageFormat, dict[int, Header], dict[int, str]]:
    """(the format of a set, the pictures that take it, reasons for the others), by number."""
    kept, left = dict(headers), dict[int, str]()
    while True:
        form = ImageFormat.of(list(kept.values()), size, opaque)
        odd = {i: why for i, header in kept.items() if (why := form.left_out(header))}
        if not odd:
            return form, kept, left
        left |= odd
        kept = {i: header for i, header in kept.items() if i not in odd}


def _most(values: Sequence[T]) -> T | None:
    """The value of more than half; None if there is none."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def _common_depth(headers: Sequence[Header]) -> str:
    depths = {h.depth for h in headers}
    if common := _most([h.depth for h in headers]):
        return common
    if depths <= FULL.keys():
        return "uint16"
    examples = ", ".join(f"{next(h.name for h in headers if h.depth == d)} is {d}" for d in sorted(depths))
    raise SfumatoError(f"images of these depths share no scale ({examples}): convert them to one depth")


def _target(headers: Sequence[Header], size: Size | None) -> tuple[int, int] | None:
    if size is not None:
        return check_size(size)
    common, count = Counter((h.height, h.width) for h in headers).most_common(1)[0]
    if count == len(headers):
        return None
    if count >= NEARLY_ALL * len(headers) or (2 * count > len(headers) and min(common) <= MAX_DEFAULT_SIDE):
        return common
    sides = sorted(min(h.height, h.width) for h in headers)
    side = min(MAX_DEFAULT_SIDE, sides[int((1 - NEARLY_ALL) * len(sides))])
    return side, side


def decode(file: BinaryIO, header: Header, form: ImageFormat) -> np.ndarray:
    """The pixels (C, H, W) of one picture in the format of its set."""
    widest = max(header.channels, form.channels)
    deepest = header.depth if form.depth == "uint8" else form.depth
    pixels = picture.decode(file, header, widest, deepest, form.target)
    if deepest != form.depth:
        pixels = np.rint(pixels / (FULL[deepest] / FULL[form.depth])).astype(form.depth)
    return np.ascontiguousarray(_narrowed(pixels, form.channels))


def constant_alpha(pixels: np.ndarray) -> int | None:
    """The one value of the alpha of a picture (4, H, W); None if it changes."""
    low, high = int(pixels[3].min()), int(pixels[3].max())
    return low if low == high else None


def _narrowed(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(c, H, W) -> (channels, H, W): what is transparent is laid over white, colours become their luminance."""
    dtype = pixels.dtype
    if channels < len(pixels) == 4:
        alpha = pixels[3:] / FULL[str(dtype)]
        see_through = constant_alpha(pixels) is None
        pixels = pixels[:3]
        if see_through:
            pixels = np.rint(alpha * pixels + (1 - alpha) * FULL[str(dtype)]).astype(dtype)
    if channels < len(pixels) == 3:
        pixels = np.rint(np.tensordot([0.299, 0.587, 0.114], pixels, 1))[None].astype(dtype)
    return pixels
