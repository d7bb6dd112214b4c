"""A cache of decoded data on disk, kept between runs: memory-mapped arrays, and small results as JSON.

    $SFUMATO_CACHE (a folder, or "off"), else the user's cache folder (on Linux $XDG_CACHE_HOME or ~/.cache) / sfumato

An entry is a folder named by the hash of its inputs. It is written under a temporary name and then renamed, so that no
incomplete entry is ever visible; if two processes write the same entry, the second uses the first one's.
The least recently used entries are removed when the total exceeds $SFUMATO_CACHE_GB (32).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from .errors import SfumatoError
from .files import reason, write_text

PLACE, LIMIT = "SFUMATO_CACHE", "SFUMATO_CACHE_GB"
DEFAULT_LIMIT = 32.0
OFF = ("off", "none", "0", "no")
FORMAT = 1  # version of entries and of decoding; a new number makes older entries invalid
_MARGIN = 0.9  # fraction of the free space that an entry may take
_OLD = 86400.0  # seconds without a change after which an incomplete entry is removed
_ARRAY, _FACTS = "x.npy", "facts.json"


def root() -> Path | None:
    """The cache folder; None if the cache is off."""
    place = os.environ.get(PLACE, "").strip()
    if place.lower() in OFF:
        return None
    return Path(place).expanduser() if place else platformdirs.user_cache_path("sfumato", appauthor=False)


def limit() -> float:
    """Largest total size of all entries, in bytes."""
    words = os.environ.get(LIMIT, "").strip()
    try:
        size = float(words) if words else DEFAULT_LIMIT
    except ValueError:
        raise SfumatoError(f"{LIMIT} must be a number of GiB, not {words!r}") from None
    return size * 2**30


def identity(parts: Any) -> str:
    """The hash of anything JSON can hold."""
    return blake2b(json.dumps([FORMAT, parts]).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()


def stamp(path: Path) -> list[Any]:
    """A file's size, mtime and ctime; equal stamps mean that the file is unchanged."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def stamps(paths: Sequence[Path]) -> list[list[Any]]:
    """The absolute path and the stamp of each file."""
    return [[str(path.resolve()), *stamp(path)] for path in paths]


class Unkept(Exception):
    """The data cannot be cached; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: one array, and facts about it."""

    path: Path
    facts: dict[str, Any]

    def array(self, mode: str = "r") -> np.ndarray:
        """The array, memory-mapped: mode "r" is read-only, "c" copy-on-write."""
        return np.lib.format.open_memmap(self.path / _ARRAY, mode=mode)


def find(key: str) -> Entry | None:
    """The entry with this key, if it exists and is complete; marks it as used."""
    place = root()
    if place is None:
        return None
    path = place / key
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(path / _FACTS)
    return Entry(path, facts)


@contextmanager
def drafted(key: str, nbytes: int) -> Iterator[Path]:
    """A draft folder for an entry of `nbytes`, removed unless `keep` renames it. Raises Unkept if there is no room."""
    place = root()
    if place is None:
        raise Unkept(f"there is no cache ({PLACE} is off)")
    if nbytes > limit():
        raise Unkept(f"its {nbytes / 2**30:.1f} GiB are more than the cache may hold ({LIMIT} is {limit() / 2**30:g})")
    try:
        place.mkdir(parents=True, exist_ok=True)
        _make_room(place, nbytes)
        free = shutil.disk_usage(place).free
        if nbytes > _MARGIN * free:
            raise Unkept(f"it needs {nbytes / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB free")
        draft = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=place))
    except OSError as error:
        raise Unkept(f"{place} cannot be written: {reason(error)}") from None
    try:
        yield draft
    except OSError as error:
        raise Unkept(f"{place} cannot be written: {reason(error)}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def allocate(draft: Path, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """The array of a draft, to be filled. Its disk space is reserved at once: a disk that is full under a mapping kills
    the process instead of raising an error."""
    path = draft / _ARRAY
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=tuple(shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not supported by this file system
                    raise
    return made


def keep(draft: Path, key: str, facts: dict[str, Any]) -> Entry:
    """Rename a filled draft to its final name; if another process was faster, use its entry."""
    with (draft / _ARRAY).open("rb") as file:  # after a power cut no entry may exist without its contents
        os.fsync(file.fileno())
    write_text(draft / _FACTS, json.dumps(facts))
    final = draft.parent / key
    try:
        os.rename(draft, final)
    except OSError:  # the entry, or a broken one, already exists
        if find(key) is None:
            shutil.rmtree(final, ignore_errors=True)
            os.rename(draft, final)
    return find(key) or Entry(final, facts)


def remembered(key: str | None, compute: Callable[[], Any]) -> Any:
    """The cached result for this key, else compute(), which must return plain JSON; without a key never cached."""
    place = root()
    if place is None or key is None:
        return compute()
    path = place / "figures" / f"{key}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = compute()
    try:
        write_text(path, json.dumps(value))
    except SfumatoError:  # the cache cannot be written: continue without it
        pass
    return value


def _make_room(place: Path, nbytes: int) -> None:
    """Remove abandoned drafts, and the least recently used entries until `nbytes` more are within the limit."""
    entries = []
    for path in place.iterdir():
        with suppress(OSError):  # another process may remove or rename it meanwhile
            if path.suffix == ".tmp":
                if time.time() - max(each.stat().st_mtime for each in (path, *path.iterdir())) > _OLD:
                    shutil.rmtree(path, ignore_errors=True)
            elif (path / _FACTS).exists():
                size = sum(file.stat().st_size for file in path.iterdir())
                entries.append(((path / _FACTS).stat().st_mtime, size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total + nbytes <= limit():
            return
        shutil.rmtree(path, ignore_errors=True)  # processes that have mapped it can still read it
        total -= size
