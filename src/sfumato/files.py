"""Atomic file writes, locks that end with their process, and sealed tensor files with a hash.

A sealed file is one safetensors file whose header carries a JSON contract and

    hash = SHA-256(contract without hash, then name, dtype, shape and bytes of every tensor, sorted by name)

so that a reader detects truncated, modified and foreign files. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from sfumato import schema
from sfumato.errors import SfumatoError
from sfumato.schema import require_plain as require_plain

KEY = "sfumato"  # key of the contract in the safetensors metadata
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors format
_SIZES = schema.listed(schema.whole(0))
_TENSORS = schema.mapping(
    schema.fields({"dtype": schema.text, "shape": _SIZES, "data_offsets": schema.listed(schema.whole(0), 2, 2)})
)
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOSYS)  # of systems that cannot flush this
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of file systems without locks
_DRAFT = f".*.{'[0-9a-f]' * 12}*.tmp"  # the names of `atomic`, of 12 digits before and of 16 now
_HOST = hashlib.blake2b(platform.node().encode(), digest_size=2).hexdigest()
_LOOK_SECONDS = 0.05  # between two attempts at a lock


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file next to `path` to write to: renamed to `path` at the end, removed after an error.

    Raises SfumatoError if it cannot be written, or if a pipe or a device stands there, which renaming would replace.
    """
    final = Path(path)
    if final.exists() and not (final.is_file() or final.is_dir()):
        raise SfumatoError(f"{final} is a pipe or a device, where a file is written: give another name.")
    temporary = final.parent / f".{final.name}.{_HOST}{os.getpid() & 0xFFFFFF:06x}{secrets.token_hex(3)}.tmp"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors ignores the umask and makes files readable only by their owner
        flush(temporary)
        os.replace(temporary, final)
        flush(final.parent)
    except OSError as error:
        raise SfumatoError(f"{final} cannot be written: {reason(error)}.") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove(path: Path) -> None:
    """Delete a file if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SfumatoError(f"{path} cannot be deleted: {reason(error)}.") from None


def sweep(folder: Path) -> None:
    """Delete the temporary files of `atomic` that killed processes left in a folder and in those directly within it."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for draft in place.glob(_DRAFT):
            draft.unlink(missing_ok=True)


def forsaken(folder: Path, name: str = "*") -> None:
    """Delete the temporary files of `atomic` for a file of this name, or any in a folder, whose process, on this
    machine, has ended; what another machine may be writing into a shared folder stays."""
    for draft in folder.glob(f".*.{_HOST}{'[0-9a-f]' * 12}.tmp"):
        wanted = name == "*" or draft.stem[1:].rpartition(".")[0] == name
        if wanted and not psutil.pid_exists(int(draft.stem[-12:-6], 16)):
            with suppress(OSError):
                draft.unlink()


class Busy(SfumatoError):
    """Another process holds the lock of a file."""


@contextmanager
def locked(path: Path, wait: float = 0.0, create: bool = False) -> Iterator[None]:
    """Lock a file for this process until the block or the process ends, however it ends.

    The path may be replaced within the block: whoever waits then locks the new file. create: make the file, and delete
    it at the end; symbolic links are not followed. Raises Busy if another process holds the lock for `wait` seconds,
    and OSError if the file cannot be opened. Without flock (Windows, some network file systems) nothing is locked.
    """
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | (os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)) * create
    end = time.monotonic() + wait
    while (handle := _opened(path, flags)) is None:
        if time.monotonic() >= end:
            raise Busy(f"{path} is in use by another process: wait until it has ended.")
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        if create and _names(path, handle):
            with suppress(OSError):
                path.unlink()
        os.close(handle)


def _opened(path: Path, flags: int) -> int | None:
    """A handle of the file that a path names, locked; None if another process holds it."""
    while True:
        handle = os.open(path, flags, 0o666)
        free = _flock(handle)
        if free and _names(path, handle):
            return handle
        os.close(handle)
        if not free:
            return None  # otherwise the file was replaced meanwhile


def _flock(handle: int) -> bool:
    """Try to lock an open file; False if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    return True


def _names(path: Path, handle: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def no_links(path: str, flags: int) -> int:
    """An opener for `open` that refuses symbolic links."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)


def reason(error: OSError) -> str:
    """The operating system's message, without number and path."""
    if error.errno == errno.ELOOP:
        return "a symbolic link stands there"
    return (error.strerror or str(error)).lower()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none; of what is looked up in vain in a file, whose
    message is that key alone, that the file is damaged."""
    if isinstance(error, LookupError) and len(str(error).split()) < 2:
        return "it is damaged, or of another kind"
    if isinstance(error, EOFError):
        return "it ends too early"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def flush(path: Path) -> None:
    """fsync a file or a folder if the system can, so that later writes cannot survive a power cut without it.

    Raises OSError if what was written is not on the disk.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows, or one that may only be written to
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_sealed(path: str | os.PathLike[str], tensors: Mapping[str, Any], contract: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able contract as one sealed safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    schema.require_utf8([str(path), contract])
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    whole = {**contract, "hash": seal(plain, contract)}
    # tensors that share memory (tied weights) are written separately
    seen: set[int] = set()
    for name, value in plain.items():
        if value.untyped_storage().data_ptr() in seen:
            plain[name] = value.clone()
        seen.add(value.untyped_storage().data_ptr())
    with atomic(path) as temporary:
        try:
            save_file(plain, str(temporary), metadata={KEY: json.dumps(whole)})
        except SafetensorError as error:  # raised for a full disk
            words = str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
            raise SfumatoError(f"{path} cannot be written: {words.lower()}.") from None


def seal(tensors: Mapping[str, Any], contract: Mapping[str, Any]) -> str:
    """The hash over a contract and its tensors."""
    import torch

    rest = {name: value for name, value in contract.items() if name != "hash"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_header(path: str | os.PathLike[str], what: str = "model file") -> tuple[dict[str, Any], dict[str, Any]]:
    """(contract, {tensor name: {"dtype", "shape", "data_offsets"}}) of a sealed file, without reading its tensors.

    Raises SfumatoError if the file is missing, truncated, not a safetensors file, or without a contract.
    """
    path = Path(path)
    require_plain(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            raw = file.read(length) if len(start) == 8 and 2 <= length <= _LARGEST_HEADER else b""
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {reason(error)}.") from None
    if not raw.startswith(b"{"):
        raise SfumatoError(f"{path} is not a {what}: it does not start as a safetensors file.")
    if len(raw) < length:
        raise SfumatoError(f"{path} is cut short: its header alone is longer than its {size:,} bytes. Copy it again.")
    try:
        header = schema.json_of(raw, "header")
        metadata = header.pop("__metadata__", {})
        schema.require(metadata, schema.mapping(schema.text), "metadata")
        schema.require(header, _TENSORS, "header")
    except SfumatoError as error:
        raise SfumatoError(f"{path} is not a {what}: its header is damaged ({error}).") from None
    whole = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < whole:
        raise SfumatoError(f"{path} is cut short: it has {size:,} of {whole:,} bytes. Copy it again.")
    if KEY not in metadata:
        raise SfumatoError(f"{path} is not a {what}: it holds tensors, but no sfumato contract says what they are.")
    try:
        contract = schema.json_of(metadata[KEY], "contract")
        schema.require(contract, schema.mapping(schema.anything), "contract")
    except SfumatoError as error:
        raise SfumatoError(f"{path} is not a {what}: its contract is damaged ({error}).") from None
    return contract, header


def read_sealed(path: str | os.PathLike[str], what: str = "model file") -> tuple[dict[str, Any], dict[str, Any]]:
    """(contract, tensors) of a sealed file. Raises SfumatoError if it does not match its hash."""
    from safetensors import SafetensorError, safe_open

    read_header(path, what)  # says what is wrong with any other file
    while True:
        before = _version(path)
        try:
            with safe_open(path, "pt") as file:
                contract = json.loads(file.metadata()[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if seal(tensors, contract) == contract.get("hash"):
                return contract, tensors
            wrong = "its contents do not match its hash"
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            wrong = str(error)
        if _version(path) == before:  # else another process replaced it while it was opened, once for each part
            raise SfumatoError(f"{path} is damaged: {wrong}. Copy it again.")


def _version(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """Which file stands there now."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
