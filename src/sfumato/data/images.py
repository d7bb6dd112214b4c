"""Encoded pictures from any container -> samples (N, C, H, W), with the stored pixel values.

The size, depth and channels of most pictures are those of the set (`formats`). Pictures that take a while to decode are
cached; if neither memory nor cache can hold them, they are decoded on access.
"""

from __future__ import annotations

import abc
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar, final

import numpy as np
import PIL
import torch
from torch import Tensor

from .. import cache
from ..errors import SfumatoError
from ..files import first_line, reason
from ..machine import fits
from ..progress import counting
from . import limits
from .formats import ImageFormat, Size, constant_alpha, decode, settled
from .picture import Header, read_header
from .rows import DECODING, READING, Mapped, Rows, Samples

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .pgm .ppm .pnm .pbm .tga .jp2 .avif .ico".split()
)
WORTH_BYTES, WORTH_COUNT = 4 << 20, 500  # bytes encoded, pictures: below these, decoding is faster than the cache
WORKERS = 4  # decoding threads
_RULES = 3  # version of the rules by which pictures become samples: another number ignores older cache entries
_AHEAD = 1024  # pictures queued for the threads at once: millions of futures would take too much memory
T = TypeVar("T")
R = TypeVar("R")
Failures = dict[int, str]  # number of an item -> the reason


def together(paths: Sequence[Path]) -> str:
    """A short description of where some files are."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths):,} files)"


def hidden(relative: PurePath) -> bool:
    """Whether a path is hidden, or one that operating systems add to the user's files."""
    return any(part.startswith((".", "__MACOSX")) for part in relative.parts) or relative.name == "Thumbs.db"


class Items(abc.ABC):
    """Encoded pictures by number. Thread-safe.

    names: one per picture. where: a description of their container. blocks: sizes of the runs of neighbours that are
    read together, if single pictures cannot be read cheaply.
    """

    names: list[str]
    where: str
    blocks: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @abc.abstractmethod
    def read(self, number: int) -> bytes:
        """All bytes of one picture."""

    def open(self, number: int) -> BinaryIO:
        """One picture as a file object, of which a part can be read."""
        return io.BytesIO(self.read(number))

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Total size of the encoded pictures in bytes."""

    @abc.abstractmethod
    def key(self) -> Any:
        """Plain JSON values that identify these contents."""


@final
class ImageFiles(Items):
    """Files below a folder."""

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root, self.paths, self.where = root, list(paths), str(root)
        self.names = [path.relative_to(root).as_posix() for path in paths]

    def read(self, number: int) -> bytes:
        try:
            return self.paths[number].read_bytes()
        except OSError as error:
            raise SfumatoError(f"{self.paths[number]} can no longer be read: {reason(error)}") from None

    def open(self, number: int) -> BinaryIO:
        return self.paths[number].open("rb")

    @cached_property
    def _stamps(self) -> list[list[Any]]:
        return [cache.stamp(path) for path in self.paths]

    @property
    def nbytes(self) -> int:
        return sum(stamp[0] for stamp in self._stamps)

    def key(self) -> Any:
        return [str(self.root.resolve()), self.names, self._stamps]


@final
class Part(Items):
    """Some of the pictures of other items."""

    def __init__(self, items: Items, numbers: Sequence[int]) -> None:
        self.items, self.numbers, self.where = items, list(numbers), items.where
        self.names = [items.names[i] for i in self.numbers]

    def read(self, number: int) -> bytes:
        return self.items.read(self.numbers[number])

    def open(self, number: int) -> BinaryIO:
        return self.items.open(self.numbers[number])

    @property
    def nbytes(self) -> int:  # as if all had the same size
        return self.items.nbytes * len(self) // len(self.items)

    def key(self) -> Any:
        return [self.items.key(), self.numbers]


@dataclass(frozen=True)
class Images:
    """Decoded images x (N, C, H, W).

    kept: the number of each image among the items. skipped: (name, reason) of the others. notes: sentences on how the
    images were changed. identity: a hash that identifies these pixels, or None for a small set.
    """

    x: Samples
    kept: list[int]
    skipped: list[tuple[str, str]]
    notes: list[str]
    identity: str | None


@final
class Pictures(Rows):
    """Pictures that are decoded on access."""

    def __init__(self, items: Items, headers: dict[int, Header], form: ImageFormat) -> None:
        first = next(iter(headers.values()))
        side = form.target or (first.height, first.width)
        super().__init__((len(headers), form.channels, *side), getattr(torch, form.depth))
        self.items, self.kept, self.headers, self.format = items, list(headers), list(headers.values()), form
        self.where, self.workers = items.where, WORKERS
        self._alphas: set[int | None] = set()

    def take(self, rows: np.ndarray) -> Tensor:
        out = np.empty((len(rows), *self.shape[1:]), self.format.depth)
        for place, row in enumerate(rows.tolist()):
            with self.spent.on(READING):
                packed = self.items.read(self.kept[row])
            with self.spent.on(DECODING):
                try:
                    out[place] = self.decode(row, io.BytesIO(packed))
                except Exception as error:  # decoding worked when the set was opened
                    name = self.items.names[self.kept[row]]
                    raise SfumatoError(f"{name} of {self.where} has changed: {first_line(error)}") from None
        return torch.from_numpy(out)

    def decode(self, row: int, file: BinaryIO) -> np.ndarray:
        """The pixels (C, H, W) of one row."""
        pixels = decode(file, self.headers[row], self.format)
        if self.format.channels == 4 and self.opaque:
            self._alphas.add(constant_alpha(pixels))
        return pixels

    @property
    def opaque(self) -> bool:
        """Whether the alpha of all that was decoded has one value; False where there is no alpha."""
        return self.format.channels == 4 and None not in self._alphas and len(self._alphas) <= 1


def read_images(items: Items, size: Size | None = None) -> Images:
    """Decode all pictures, skipping those that cannot be decoded. Raises SfumatoError if none is left."""
    most = limits.most()
    key = cache.identity(["images", _RULES, items.key(), size, PIL.__version__, most])
    if (entry := cache.find(key)) is not None:
        return _from_cache(entry, key, items)
    try:
        return _read(items, size, key, most)
    except SfumatoError as error:
        raise SfumatoError(f"{items.where}: {error}") from None


def _from_cache(entry: cache.Entry, key: str, items: Items) -> Images:
    dropped = dict(entry.facts["dropped"])
    kept = [i for i in range(len(items)) if i not in dropped]
    note = f"Decoded pictures are in the cache, {entry.path} ({entry.facts['bytes'] / 2**30:.2g} GiB)."
    return Images(_stored(entry, len(kept), key), kept, _skipped(items, dropped), [*entry.facts["notes"], note], key)


def _stored(entry: cache.Entry, count: int, key: str) -> Samples:
    """The rows of a cache entry: as a tensor mapped into memory if that can hold it, otherwise read row by row."""
    if entry.facts["bytes"] and fits(entry.facts["bytes"]):
        return torch.from_numpy(entry.array("c")[:count])
    return Mapped(entry.array()[:count], f"the cache {entry.path}", key)


def _skipped(items: Items, failed: Failures) -> list[tuple[str, str]]:
    return sorted((items.names[i], why) for i, why in failed.items())


def _read(items: Items, size: Size | None, key: str, most: float) -> Images:
    def header(number: int) -> Header:
        with items.open(number) as file:
            return read_header(file, items.names[number], most)

    headers, failed = _attempt_all(header, range(len(items)), "Looking at pictures")
    worth = items.nbytes >= WORTH_BYTES or len(items) >= WORTH_COUNT
    opaque = False
    while headers:
        form, headers, odd = settled(headers, size, opaque)
        failed |= odd
        pictures = Pictures(items, headers, form)
        x, notes, broken = _decoded(pictures, failed, size, key, worth)
        failed |= broken
        headers = {i: header for i, header in headers.items() if i not in broken}
        if headers and not pictures.opaque and form == ImageFormat.of(list(headers.values()), size, opaque):
            if isinstance(x, Pictures):
                x = Pictures(items, headers, form)
            notes = [*form.notes(list(headers.values()), size), *notes]
            return Images(x, list(headers), _skipped(items, failed), notes, key if worth else None)
        # otherwise repeat: without the broken ones that had decided the format, or without an alpha that never changes
        opaque = opaque or pictures.opaque
    number, why = next(iter(failed.items()))
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise SfumatoError(f"no image could be read: {items.names[number]}: {why}{more}")


def _decoded(
    pictures: Pictures, failed: Failures, size: Size | None, key: str, worth: bool
) -> tuple[Samples, list[str], Failures]:
    """(samples of the pictures that can be decoded, notes, the other pictures with reasons).

    The samples are in the cache if that is worthwhile and possible, else in memory if they fit; otherwise all are
    decoded once to find broken ones, and then again on access.
    """
    notes: list[str] = []
    if worth or not fits(pictures.nbytes):
        try:
            return _in_cache(pictures, failed, size, key)
        except cache.Unkept as why:
            if cache.root() is not None or not fits(pictures.nbytes):
                notes = [f"The decoded pictures are not kept in the cache: {why}."]
    if fits(pictures.nbytes):
        out = np.empty(pictures.shape, pictures.format.depth)
        broken = _fill(pictures, out)
        return torch.from_numpy(out[: len(out) - len(broken)]), notes, broken
    notes.append("They do not fit into memory, so each picture is decoded whenever it is used.")
    return pictures, notes, _fill(pictures, None)


def _in_cache(pictures: Pictures, failed: Failures, size: Size | None, key: str) -> tuple[Samples, list[str], Failures]:
    with cache.drafted(key, pictures.nbytes) as draft:
        out = cache.allocate(draft, pictures.shape, pictures.format.depth)
        broken = _fill(pictures, out)
        rest = [h for i, h in zip(pictures.kept, pictures.headers, strict=True) if i not in broken]
        form = pictures.format
        if not rest or pictures.opaque or ImageFormat.of(rest, size, form.opaque) != form:
            return pictures, [], broken
        used = out[: len(rest)].nbytes
        dropped = sorted((failed | broken).items())
        facts = {"dropped": dropped, "notes": form.notes(rest, size), "bytes": used}
        entry = cache.keep(draft, key, facts)
    note = f"Decoded once into the cache, {entry.path} ({used / 2**30:.2g} GiB)."
    return _stored(entry, len(rest), key), [note], broken


def _fill(pictures: Pictures, out: np.ndarray | None) -> Failures:
    """Decode all pictures into out, without gaps; returns those that cannot be decoded, by item number."""

    def one(row: int) -> None:
        with pictures.items.open(pictures.kept[row]) as file:
            pixels = pictures.decode(row, file)
        if out is not None:
            out[row] = pixels

    good, broken = _attempt_all(one, range(len(pictures)), "Decoding pictures")
    if out is not None and broken:
        for place, row in enumerate(good):
            out[place] = out[row]
    return {pictures.kept[row]: why for row, why in broken.items()}


def _attempt_all(function: Callable[[int], R], numbers: Sequence[int], what: str) -> tuple[dict[int, R], Failures]:
    """(results of function(number) by number, failures with reasons), computed on a few threads.

    what: label of the progress count. Ctrl-C stops after the calls in progress.
    """
    results: dict[int, R] = {}
    failed: Failures = {}

    def attempt(number: int) -> None:
        try:
            results[number] = function(number)
        except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
            failed[number] = first_line(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, counting(what, len(numbers)) as count:
        try:
            for start in range(0, len(numbers), _AHEAD):
                for _ in pool.map(attempt, numbers[start : start + _AHEAD]):
                    count()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return dict(sorted(results.items())), dict(sorted(failed.items()))
