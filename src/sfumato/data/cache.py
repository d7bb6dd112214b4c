"""What was decoded once, kept under the user's cache folder: arrays that are mapped, and figures.

    $SFUMATO_CACHE (a folder, or "off"), else $XDG_CACHE_HOME/sfumato, else ~/.cache/sfumato

An entry is a folder under the hash of what it was made from. It is written beside its name and renamed, so that a
half-written one is never seen; of two processes that make the same one the second takes what the first has made.
Entries that were not used for longest go when all together exceed $SFUMATO_CACHE_GB (32).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import SfumatoError
from ..files import reason, write_text

PLACE, LIMIT = "SFUMATO_CACHE", "SFUMATO_CACHE_GB"
DEFAULT_LIMIT = 32.0
OFF = ("off", "none", "0", "no")
FORMAT = 1  # of entries, and of how things are decoded: a higher number leaves older entries alone
_MARGIN = 0.9  # of the free space that an entry may take
_OLD = 86400.0  # seconds after which what a process on another machine left half-written goes
T = TypeVar("T")


def root() -> Path | None:
    """The cache folder, or None where there is to be none."""
    place = os.environ.get(PLACE, "").strip()
    if place.lower() in OFF:
        return None
    if place:
        return Path(place).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "sfumato"


def limit() -> float:
    """Bytes that all entries together may take."""
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
    """What tells that a file is as it was: size, time of its contents and time of its entry on the disk."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


class Unkept(Exception):
    """There is no room, or no cache; the words say why."""


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: arrays by name, and facts."""

    path: Path
    facts: dict[str, Any]

    def array(self, name: str, mode: str = "r") -> np.ndarray:
        """The array, mapped: "r" to read, "c" for changes that stay in memory."""
        return np.lib.format.open_memmap(self.path / f"{name}.npy", mode=mode)


def find(key: str) -> Entry | None:
    """The entry of that name, if it is there and whole; it counts as used."""
    place = root()
    if place is None:
        return None
    path = place / key
    try:
        facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
        os.utime(path / "facts.json")
    except (OSError, ValueError):
        return None
    return Entry(path, facts)


class Draft:
    """An entry that is being made, under a name of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def array(self, name: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array to fill, whose place on the disk is taken at once: a full disk says so here, not later."""
        path = self.path / f"{name}.npy"
        made = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=tuple(shape))
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that know no such thing
                        raise
        return made


@contextmanager
def drafted(key: str, nbytes: int) -> Iterator[Draft]:
    """A draft for an entry of so many bytes, removed unless `keep` renames it. Unkept where there is no room for it."""
    place = root()
    if place is None:
        raise Unkept(f"there is no cache ({PLACE} is off)")
    if nbytes > limit():
        raise Unkept(f"its {nbytes / 2**30:.1f} GiB are more than the cache may hold ({LIMIT} is {limit() / 2**30:g})")
    try:
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        _make_room(place, nbytes)
        free = shutil.disk_usage(place).free
        if nbytes > _MARGIN * free:
            raise Unkept(f"it needs {nbytes / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB free")
        prefix = f"{key}+{socket.gethostname()}+{os.getpid()}+"
        path = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=place))
    except OSError as error:
        raise Unkept(f"{place} cannot be written: {reason(error)}") from None
    try:
        yield Draft(path)
    except OSError as error:
        raise Unkept(f"{place} cannot be written: {reason(error)}") from None
    finally:
        shutil.rmtree(path, ignore_errors=True)


def keep(draft: Draft, key: str, facts: dict[str, Any]) -> Entry:
    """The draft under its final name; where another process was faster, its entry."""
    for file in draft.path.iterdir():  # a name must not outlive a power cut that its contents do not
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    write_text(draft.path / "facts.json", json.dumps(facts))
    final = draft.path.parent / key
    try:
        os.rename(draft.path, final)
    except OSError:  # it is there already
        found = find(key)
        if found is None:
            shutil.rmtree(final, ignore_errors=True)
            os.rename(draft.path, final)
    return find(key) or Entry(final, facts)


@contextmanager
def alone(key: str) -> Iterator[None]:
    """Within the block no other process makes this entry; without locks two may, which does no harm."""
    place = root()
    try:
        import fcntl

        if place is None:
            raise OSError
        place.mkdir(parents=True, exist_ok=True)
        file = (place / f"{key}.lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    except (OSError, ImportError):
        yield
        return
    try:
        yield
    finally:
        (place / f"{key}.lock").unlink(missing_ok=True)
        file.close()


def remembered(key: str | None, compute: Callable[[], T], load: Callable[[Any], T], dump: Callable[[T], Any]) -> T:
    """compute(), or what it gave when it was asked under this key before."""
    place = root()
    path = None if place is None or key is None else place / "figures" / f"{key}.json"
    if path is not None:
        try:
            return load(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            pass
    value = compute()
    if path is not None:
        try:
            write_text(path, json.dumps(dump(value)))
        except SfumatoError:  # a cache that cannot be written is none
            pass
    return value


def _sweep(place: Path) -> None:
    """Remove what processes that are gone left half-written."""
    for path in place.glob("*.tmp"):
        _, host, pid, *_ = [*path.name.split("+"), "", "", ""]
        gone = host == socket.gethostname() and pid.isdigit() and not _lives(int(pid))
        if gone or time.time() - path.stat().st_mtime > _OLD:
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _make_room(place: Path, nbytes: int) -> None:
    """Remove the entries that were not used for longest until `nbytes` more are within the limit."""
    entries = []
    for facts in place.glob("*/facts.json"):
        size = sum(file.stat().st_size for file in facts.parent.iterdir())
        entries.append((facts.stat().st_mtime, size, facts.parent))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total + nbytes <= limit():
            return
        shutil.rmtree(path, ignore_errors=True)  # who has it mapped keeps it until the end
        total -= size
