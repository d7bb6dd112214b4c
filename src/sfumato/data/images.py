"""Many image files -> one tensor (N, C, H, W), as stored.

A set of several modes is promoted to the widest. Equal sizes stay; unequal ones follow one rule: the shorter side is
resized to min(64, the smallest shorter side) and the picture cropped to a centred square.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from .picture import Header, check_size, decode, read_header

MAX_DEFAULT_SIDE = 64
MEMORY_SHARE = 0.8  # of the machine's memory that one set of pictures may fill
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Images:
    """Decoded images x (N, C, H, W), their paths, what was skipped and why, and what was done to them."""

    x: Tensor
    paths: list[Path]
    skipped: list[tuple[Path, str]]
    notes: list[str]


@dataclass(frozen=True)
class Layout:
    """What all images of a set become: channels, depth, and (height, width) or None where they stay as stored."""

    channels: int
    depth: str
    target: tuple[int, int] | None


def read_images(paths: Sequence[Path], size: int | tuple[int, int] | None = None) -> Images:
    """Read all that can be read; a file that cannot is skipped with its reason. All skipped raises SfumatoError."""
    headers, skipped = _attempt_all(read_header, paths)
    while headers:
        layout = _layout(headers, size)
        _require_memory(headers, layout)

        x, failed = _decode_all(headers, layout)
        skipped += [(headers[i].path, reason) for i, reason in failed]
        broken = {i for i, _ in failed}
        headers = [header for i, header in enumerate(headers) if i not in broken]
        if headers and _layout(headers, size) == layout:  # else the broken files had shaped it: once more without
            notes = _notes(headers, layout, size)
            return Images(torch.from_numpy(x), [h.path for h in headers], sorted(skipped), notes)
    raise SfumatoError(f"no image could be read: {_reasons(skipped)}")


def _decode_all(headers: Sequence[Header], layout: Layout) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """The pixels (n, C, H, W) of those that can be decoded, and (position, reason) of those that cannot."""
    height, width = layout.target or (headers[0].height, headers[0].width)
    x = np.empty((len(headers), layout.channels, height, width), layout.depth)

    def fill(i: int) -> int:
        x[i] = decode(headers[i], layout.channels, layout.depth, layout.target)
        return i

    kept, failed = _attempt_all(fill, range(len(headers)))
    return (x[kept] if failed else x), failed


def _attempt_all(function: Callable[[T], R], items: Sequence[T]) -> tuple[list[R], list[tuple[T, str]]]:
    """function(item) for all, in order, on a few threads; those that fail are returned with the reason."""

    def attempt(item: T) -> tuple[bool, R | str]:
        try:
            return True, function(item)
        except Exception as error:  # Pillow's many decoders raise whatever they like at a damaged file
            text = str(error).strip()
            return False, text.splitlines()[0] if text else type(error).__name__

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, items))
    good = [value for done, value in results if done]
    bad = [(item, str(reason)) for item, (done, reason) in zip(items, results, strict=True) if not done]
    return good, bad  # type: ignore[return-value]


def _layout(headers: Sequence[Header], size: int | tuple[int, int] | None) -> Layout:
    return Layout(max(h.channels for h in headers), _common_depth(headers), _target(headers, size))


def _common_depth(headers: Sequence[Header]) -> str:
    depths = {h.depth for h in headers}
    if len(depths) == 1:
        return depths.pop()
    if depths <= {"uint8", "uint16"}:
        return "uint16"
    examples = ", ".join(f"{next(h.path.name for h in headers if h.depth == d)} is {d}" for d in sorted(depths))
    raise SfumatoError(f"images of these depths share no scale ({examples}): convert them to one depth")


def _target(headers: Sequence[Header], size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is not None:
        return check_size(size)
    if len({(h.height, h.width) for h in headers}) == 1:
        return None
    side = min(MAX_DEFAULT_SIDE, min(min(h.height, h.width) for h in headers))
    return side, side


def _require_memory(headers: Sequence[Header], layout: Layout) -> None:
    height, width = layout.target or (headers[0].height, headers[0].width)
    needed = len(headers) * layout.channels * height * width * np.dtype(layout.depth).itemsize
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * memory:
        raise SfumatoError(
            f"{len(headers):,} images of {height} x {width} need {needed / 2**30:.1f} GiB and this machine has "
            f"{memory / 2**30:.1f}: give a smaller size"
        )


def _notes(headers: Sequence[Header], layout: Layout, size: int | tuple[int, int] | None) -> list[str]:
    notes = []
    if layout.target is not None:
        changed = sum((h.height, h.width) != layout.target for h in headers)
        why = "as asked" if size is not None else "because the images have different sizes"
        if changed:
            notes.append(
                f"{changed:,} of {len(headers):,} images were resized to cover {layout.target[0]} x {layout.target[1]} "
                f"and cropped at the centre, {why}."
            )
    promoted = sum(h.channels != layout.channels for h in headers)
    if promoted:
        notes.append(f"{promoted:,} images with fewer channels were promoted to {layout.channels}.")
    deepened = sum(h.depth != layout.depth for h in headers)
    if deepened:
        notes.append(f"{deepened:,} images of 8 bits were scaled to 16 bits (x 257).")
    counts = Counter(remark for h in headers for remark in h.remarks)
    notes += [f"{count:,} images are {remark}." for remark, count in sorted(counts.items())]
    return notes


def _reasons(skipped: Sequence[tuple[Path, str]]) -> str:
    if not skipped:
        return "there is none"
    path, reason = skipped[0]
    more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    return f"{path.name}: {reason}{more}"
