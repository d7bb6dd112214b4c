"""Arrays in .npy and .npz files, read after their headers have been checked against the bytes that are there."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np

from ..files import require_plain
from . import limits
from .file_format import reading, standing

_SUFFIX = ".npy"  # of the members of a .npz
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load(path: Path, mode: Literal["r", "c"] | None = None) -> np.ndarray:
    """The array in a .npy file, memory-mapped in this mode unless it is None; objects are never unpickled."""
    with reading(path, ".npy array"):
        require_plain(path)
        with path.open("rb") as file:
            nbytes = _Header(file).nbytes
            left = path.stat().st_size - file.tell()
        if nbytes > left:
            raise ValueError(f"its header claims more than the {left:,} bytes that follow")
        return np.load(path, mmap_mode=mode, allow_pickle=False)


class _Header:
    """The shape and dtype at the head of a .npy file, without its values. Raises ValueError for any that is unsound."""

    def __init__(self, file: IO[bytes]) -> None:
        read = _READERS.get(np.lib.format.read_magic(file))
        if read is None:
            raise ValueError("it is of a version for records, which are not read")
        self.shape, _, self.dtype = read(file)
        if any(type(side) is not int or not 0 <= side < 2**63 for side in self.shape):
            raise ValueError(f"its shape is {self.shape!s:.80}")
        if not self.dtype.itemsize:
            raise ValueError("its values have no bytes")
        if self.dtype.hasobject:
            raise ValueError("it holds pickled Python objects, which are never loaded; save a plain numeric array")
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize


def _of_member(file: IO[bytes], name: str) -> _Header:
    try:
        return _Header(file)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class Archive:
    """The arrays of a .npz file, of which only those that are read are ever unpacked.

    arrays: name -> an array of the shape and dtype of each, without its values or the memory for them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays: dict[str, np.ndarray] = {}
        with reading(path, ".npz archive"), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(_SUFFIX):
                    continue
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{info.filename} is compressed in a way that NumPy does not use")
                with archive.open(info) as file:
                    header = _of_member(file, info.filename)
                if header.nbytes > info.file_size:
                    raise ValueError(f"{info.filename} claims more than the {info.file_size:,} bytes it has")
                self.arrays[info.filename.removesuffix(_SUFFIX)] = standing(header.shape, header.dtype)

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays of these names, unpacked."""
        limits.require_file(self.path, sum(self.arrays[name].nbytes for name in names))
        with reading(self.path, ".npz archive"), zipfile.ZipFile(self.path) as archive:
            return {name: _member(archive, name) for name in names}


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name + _SUFFIX) as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return found
