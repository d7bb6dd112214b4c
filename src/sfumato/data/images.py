"""Many encoded pictures -> samples (N, C, H, W), as stored.

A set of several modes is promoted to the widest. Equal sizes stay; unequal ones follow one rule: the shorter side is
resized to min(64, the smallest shorter side) and the picture cropped to a centred square. What took a while to decode
is kept in the cache; what neither memory nor cache can hold is decoded when it is asked for.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import PIL
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..machine import fits
from ..progress import counting
from . import cache
from .items import Items
from .picture import Header, check_size, decode, read_header
from .rows import DECODING, READING, Mapped, Rows, Samples

MAX_DEFAULT_SIDE = 64
WORTH_BYTES, WORTH_COUNT = 4 << 20, 500  # encoded: a smaller set is decoded faster than it is looked up
WORKERS = 4  # threads that decode ahead
_AHEAD = 1024  # pictures that threads are given at once: the tickets of millions would take memory
T = TypeVar("T")
R = TypeVar("R")
Size = int | tuple[int, int]


@dataclass(frozen=True)
class Images:
    """Decoded images x (N, C, H, W), which of the items they are, (name, reason) of what was skipped, and what was done
    to them. identity: a name for exactly these pixels, where they are worth one."""

    x: Samples
    kept: list[int]
    skipped: list[tuple[str, str]]
    notes: list[str]
    identity: str | None


@dataclass(frozen=True)
class Layout:
    """What all images of a set become: channels, depth, and (height, width) or None where they stay as stored."""

    channels: int
    depth: str
    target: tuple[int, int] | None

    def shape(self, headers: Sequence[Header]) -> tuple[int, int, int, int]:
        height, width = self.target or (headers[0].height, headers[0].width)
        return len(headers), self.channels, height, width

    def nbytes(self, headers: Sequence[Header]) -> int:
        count, channels, height, width = self.shape(headers)
        return count * channels * height * width * np.dtype(self.depth).itemsize


@final
class Pictures(Rows):
    """Pictures that are decoded when they are asked for."""

    def __init__(self, items: Items, kept: Sequence[int], headers: Sequence[Header], layout: Layout) -> None:
        super().__init__(layout.shape(headers), getattr(torch, layout.depth))
        self.items, self.kept, self.headers, self.layout = items, kept, headers, layout
        self.where, self.workers = items.where, WORKERS

    def take(self, rows: np.ndarray) -> Tensor:
        out = np.empty((len(rows), *self.shape[1:]), self.layout.depth)
        for place, row in enumerate(rows.tolist()):
            with self.spent.on(READING):
                packed = self.items.read(self.kept[row])
            with self.spent.on(DECODING):
                try:
                    out[place] = self._decode(io.BytesIO(packed), self.headers[row])
                except Exception as error:  # it could be decoded when it was opened
                    name = self.items.names[self.kept[row]]
                    raise SfumatoError(f"{name} of {self.where} has changed: {_first_line(error)}") from None
        return torch.from_numpy(out)

    def _decode(self, file: Any, header: Header) -> np.ndarray:
        return decode(file, header, self.layout.channels, self.layout.depth, self.layout.target)


def read_images(items: Items, size: Size | None = None) -> Images:
    """Read all that can be read; what cannot is skipped with its reason. All skipped raises SfumatoError."""
    key = cache.identity(["images", items.key(), size, PIL.__version__])
    found = _from_cache(key, items)
    if found is not None:
        return found
    worth = items.nbytes >= WORTH_BYTES or len(items) >= WORTH_COUNT
    with ExitStack() as lock:
        if worth:
            lock.enter_context(cache.alone(key))
            found = _from_cache(key, items)  # another process has made it meanwhile
        return found or _read(items, size, key, worth, lock.close)


def _from_cache(key: str, items: Items) -> Images | None:
    entry = cache.find(key)
    if entry is None:
        return None
    facts = entry.facts
    dropped = dict(facts["dropped"])
    kept = [i for i in range(len(items)) if i not in dropped]
    skipped = sorted((items.names[i], reason) for i, reason in facts["dropped"])
    note = f"Decoded pictures are in the cache, {entry.path} ({facts['bytes'] / 2**30:.2g} GiB)."
    return Images(_stored(entry, len(kept), key), kept, skipped, [*facts["notes"], note], key)


def _stored(entry: cache.Entry, count: int, key: str) -> Samples:
    """The rows of an entry: as a tensor where memory can hold it, page by page and shared with other processes."""
    if entry.facts["bytes"] and fits(entry.facts["bytes"]):
        return torch.from_numpy(entry.array("x", "c")[:count])
    return Mapped(entry.array("x")[:count], f"the cache {entry.path}", key)


def _read(items: Items, size: Size | None, key: str, worth: bool, release: Callable[[], None]) -> Images:
    headers, failed = _attempt_all(lambda i: _header(items, i), range(len(items)), "Looking at pictures")
    bad = {i for i, _ in failed}
    kept = [i for i in range(len(items)) if i not in bad]
    while headers:
        layout = _layout(headers, size)
        x, told, broken = _decoded(items, kept, headers, layout, key if worth else None, failed, size, release)
        failed += [(kept[i], reason) for i, reason in broken]
        lost = {i for i, _ in broken}
        kept = [number for i, number in enumerate(kept) if i not in lost]
        headers = [header for i, header in enumerate(headers) if i not in lost]
        if headers and _layout(headers, size) == layout:  # else the broken ones had shaped it: once more without
            if isinstance(x, Pictures):
                x = Pictures(items, kept, headers, layout)
            skipped = sorted((items.names[i], reason) for i, reason in failed)
            return Images(x, kept, skipped, [*_notes(headers, layout, size), *told], key if worth else None)
    raise SfumatoError(f"no image could be read: {_reasons(items, failed)}")


def _header(items: Items, number: int) -> Header:
    with items.open(number) as file:
        return read_header(file, items.names[number])


Failed = list[tuple[int, str]]


def _decoded(
    items: Items, kept: Sequence[int], headers: Sequence[Header], layout: Layout, key: str | None, before: Failed,
    size: Size | None, release: Callable[[], None],
) -> tuple[Samples, list[str], Failed]:  # fmt: skip
    """(samples of those that can be decoded, notes, (position, reason) of those that cannot).

    In the cache where that is worth it and possible, else in memory where they fit, else decoded once to see that they
    can be. release: called once nothing is made that others would wait for.
    """
    nbytes, pictures, told = layout.nbytes(headers), Pictures(items, kept, headers, layout), []
    if key is not None or not fits(nbytes):
        key = key or cache.identity(["images", items.key(), size, PIL.__version__])
        try:
            with cache.drafted(key, nbytes) as draft:
                out = draft.array("x", pictures.shape, layout.depth)
                good, broken = _fill(pictures, out)
                rest = [header for i, header in enumerate(headers) if i not in dict(broken)]
                if not rest or _layout(rest, size) != layout:
                    return pictures, [], broken
                dropped = sorted([*before, *((kept[i], reason) for i, reason in broken)])
                used = out[: len(good)].nbytes
                facts = {"dropped": dropped, "notes": _notes(rest, layout, size), "bytes": used}
                entry = cache.keep(draft, key, facts)
            told = [f"Decoded once into the cache, {entry.path} ({used / 2**30:.2g} GiB)."]
            return _stored(entry, len(good), key), told, broken
        except cache.Unkept as why:
            release()
            if cache.root() is not None or not fits(nbytes):
                told = [f"The decoded pictures are not kept in the cache: {why}."]
    if fits(nbytes):
        x = np.empty(pictures.shape, layout.depth)
        good, broken = _fill(pictures, x)
        return torch.from_numpy(x[: len(good)]), told, broken
    told.append("They are more than memory should hold, so each is decoded whenever it is used.")
    return pictures, told, _fill(pictures, None)[1]


def _fill(pictures: Pictures, out: np.ndarray | None) -> tuple[list[int], Failed]:
    """Decode all into out, without gaps: (positions that could be decoded, (position, reason) of the others)."""

    def one(i: int) -> int:
        with pictures.items.open(pictures.kept[i]) as file:
            pixels = pictures._decode(file, pictures.headers[i])
        if out is not None:
            out[i] = pixels
        return i

    good, broken = _attempt_all(one, range(len(pictures)), "Decoding pictures")
    if out is not None and broken:
        for place, i in enumerate(good):
            out[place] = out[i]
    return good, broken


def _attempt_all(function: Callable[[T], R], items: Sequence[T], what: str) -> tuple[list[R], list[tuple[T, str]]]:
    """function(item) for all, in order, on a few threads; those that fail are returned with the reason.

    what: the words that it is counted under. Ctrl-C ends it after the items under way.
    """

    def attempt(item: T) -> tuple[bool, R | str]:
        try:
            return True, function(item)
        except Exception as error:  # Pillow's many decoders raise whatever they like at a damaged file
            return False, _first_line(error)

    results: list[tuple[bool, R | str]] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, counting(what, len(items)) as count:
        try:
            for start in range(0, len(items), _AHEAD):
                for result in pool.map(attempt, items[start : start + _AHEAD]):
                    results.append(result)
                    count()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    good = [value for done, value in results if done]
    bad = [(item, str(reason)) for item, (done, reason) in zip(items, results, strict=True) if not done]
    return good, bad  # type: ignore[return-value]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _layout(headers: Sequence[Header], size: Size | None) -> Layout:
    return Layout(max(h.channels for h in headers), _common_depth(headers), _target(headers, size))


def _common_depth(headers: Sequence[Header]) -> str:
    depths = {h.depth for h in headers}
    if len(depths) == 1:
        return depths.pop()
    if depths <= {"uint8", "uint16"}:
        return "uint16"
    examples = ", ".join(f"{next(h.name for h in headers if h.depth == d)} is {d}" for d in sorted(depths))
    raise SfumatoError(f"images of these depths share no scale ({examples}): convert them to one depth")


def _target(headers: Sequence[Header], size: Size | None) -> tuple[int, int] | None:
    if size is not None:
        return check_size(size)
    if len({(h.height, h.width) for h in headers}) == 1:
        return None
    side = min(MAX_DEFAULT_SIDE, min(min(h.height, h.width) for h in headers))
    return side, side


def _notes(headers: Sequence[Header], layout: Layout, size: Size | None) -> list[str]:
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


def _reasons(items: Items, failed: Failed) -> str:
    if not failed:
        return "there is none"
    number, reason = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"{items.names[number]}: {reason}{more}"
