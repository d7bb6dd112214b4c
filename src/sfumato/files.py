"""Atomic file writes, and sealed tensor files with a hash.

A sealed file is one safetensors file whose header carries a JSON contract and

    hash = SHA-256(contract without hash, then name, dtype, shape and bytes of every tensor, sorted by name)

so that a reader detects truncated, modified and foreign files. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato import schema
from sfumato.errors import SfumatoError
from sfumato.schema import require_plain as require_plain

KEY = "sfumato"  # key of the contract in the safetensors metadata
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors format
_SIZES = schema.listed(schema.whole(0))
_TENSORS = schema.mapping(
    schema.fields({"dtype": schema.text, "shape": _SIZES, "data_offsets": schema.listed(schema.whole(0), 2, 2)})
)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file next to `path` to write to: renamed to `path` at the end, removed after an error."""
    final = Path(path)
    temporary = final.parent / f".{final.name}.{secrets.token_hex(6)}.tmp"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors ignores the umask and makes files readable only by their owner
        flush(temporary)
        os.replace(temporary, final)
    except OSError as error:
        raise SfumatoError(f"{final} cannot be written: {reason(error)}.") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    flush(final.parent)


def reason(error: OSError) -> str:
    """The operating system's message, without number and path."""
    return (error.strerror or str(error)).lower()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def flush(path: Path) -> None:
    """fsync a file or a folder if the system can, so that later writes cannot survive a power cut without it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a file. Raises SfumatoError for a pipe or a device."""
    require_plain(Path(path))
    return Path(path).read_text(encoding)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_sealed(path: str | os.PathLike[str], tensors: Mapping[str, Any], contract: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able contract as one sealed safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

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
        size = path.stat().st_size
        with path.open("rb") as file:
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    contract, _ = read_header(path, what)
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise SfumatoError(f"{path} is damaged: {error}. Copy it again.") from None
    if seal(tensors, contract) != contract.get("hash"):
        raise SfumatoError(f"{path} is damaged: its contents do not match its hash. Copy it again.")
    return contract, tensors
