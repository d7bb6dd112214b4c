"""Formats of files that other packages read: each is a class that is registered under "format", known by its endings.

    @register("format", "tiff")
    class Tiff(Stack): ...

A file of named `Arrays` is read as a .npz is. Each file of a `Stack` holds one or more samples of one shape, and a
folder of them is read as one of pictures is. Packages are imported where they are used, by an extra.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import registry
from ..errors import SfumatoError
from ..files import first_line, reason

FILLS = ("_FillValue", "missing_value")  # attributes that say what stands for a missing value
Stored = dict[str, Any]  # what a file of samples needs of the training data's, as plain values for JSON


class FileFormat(abc.ABC):
    """A format of files. what: its name in messages. extra: of pip, which installs what it imports.

    needs: the packages that `write` imports. one: whether a file that is written holds a single sample.
    """

    what: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    one: ClassVar[bool] = False

    def unfit(self, shape: tuple[int, ...], stored: Mapping[str, Any]) -> str:
        """Why samples of this shape cannot be written; empty if they can."""
        return ""

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        """Write samples x (N, *shape) in user units. beside: an array (N, ..) of each condition. stored: of the
        training data, with the ending of the path and a key. manifest: what drew the samples, as JSON in ASCII.
        Formats without it are only read."""
        raise NotImplementedError

    @property
    def writes(self) -> bool:
        return type(self).write is not FileFormat.write

    def ending(self, path: Path) -> str:
        """The ending of a file's name, such as .nii.gz."""
        return next(ending for ending in self.endings if path.name.lower().endswith(ending))


class Contents(NamedTuple):
    """The arrays of an open file.

    arrays: name -> an array of the shape and dtype of each, without the memory for it. read: gives its values by name.
    stored: gives what a file of samples needs of it by name.
    """

    arrays: dict[str, Any]
    read: Callable[[str], Any]
    stored: Callable[[str], Stored]


class Arrays(FileFormat):
    """Files of named arrays, whose first axis counts samples."""

    @abc.abstractmethod
    def open(self, path: Path) -> AbstractContextManager[Contents]:
        """The arrays of a file, while the block lasts."""

    def rows(self, path: Path, name: str) -> Callable[[np.ndarray], np.ndarray] | None:
        """A function of ascending row numbers that reads these rows of an array from a file that `open` has accepted.

        None for a format whose arrays are read whole.
        """
        return None


class Unread:
    """An array (N, ...) of a file, whose rows are read when they are asked for, array[rows].

    like: an array of its shape and dtype. read: `Arrays.rows`.
    """

    def __init__(self, like: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self.shape, self.dtype, self.ndim, self.nbytes, self._read = (
            like.shape,
            like.dtype,
            like.ndim,
            like.nbytes,
            read,
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        wanted, places = np.unique(rows, return_inverse=True)
        if not len(wanted):
            return np.empty((0, *self.shape[1:]), self.dtype)
        found = self._read(wanted)
        if found.dtype.kind != self.dtype.kind:
            raise SfumatoError("whole numbers with missing values that do not fit into memory: save them as floats")
        return found.reshape(-1, *self.shape[1:])[places]


class Scan(NamedTuple):
    """The samples of a file, by its header alone. stored: as in `Contents`."""

    number: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stored: Stored
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.number * math.prod(self.shape) * self.dtype.itemsize


class Stack(FileFormat):
    """Files of samples of one shape, channels first.

    named: whether a file may hold several images with names. continuous: whether neighbouring samples of a file are
    nearly the same, so that the last ones are held out. windows: whether samples are cut along their last axis.
    """

    named: ClassVar[bool] = False
    continuous: ClassVar[bool] = False
    windows: ClassVar[bool] = False

    @abc.abstractmethod
    def scan(self, path: Path, key: str | None) -> Scan:
        """What a file holds. key: the image of several with names."""

    @abc.abstractmethod
    def load(self, path: Path, key: str | None) -> np.ndarray:
        """The samples (n, *shape) of a file that was scanned."""


def without_fill(values: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """An array of a file with NaN where a value is one that its attributes declare to mean none (`FILLS`)."""
    fills = [about[name] for name in FILLS if name in about]
    known = [np.asarray(fill).reshape(-1)[0] for fill in fills if np.asarray(fill).dtype.kind in "iuf"]
    return with_gaps(values, np.isin(values, known)) if known and values.dtype.kind in "iuf" else values


def with_gaps(values: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Numbers with NaN where `gaps`; whole numbers become floats that hold them if there are any."""
    if not gaps.any():
        return values
    floats = values.dtype if values.dtype.kind == "f" else np.float32 if values.dtype.itemsize <= 2 else np.float64
    found = values.astype(floats)
    found[gaps] = np.nan
    return found


def standing(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of this shape and dtype without the memory for its values."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def known() -> list[FileFormat]:
    """All formats."""
    return [registry.get("format", name)() for name in registry.names("format")]


def of(path: Path) -> FileFormat | None:
    """The format of a file by the ending of its name."""
    return next((each for each in known() if path.name.lower().endswith(each.endings)), None)


def written() -> tuple[str, ...]:
    """The endings of the files that can be written."""
    return tuple(ending for each in known() if each.writes for ending in each.endings)


def require_writable(path: Path, shape: tuple[int, ...], stored: Mapping[str, Any]) -> FileFormat:
    """The format in which samples of this shape can be written to a path. Raises SfumatoError if they cannot."""
    form = of(path)
    assert form is not None
    if why := form.unfit(shape, stored):
        raise SfumatoError(f"{path}: {why}: write a .npz")
    with reading(path, form.what, form.extra):
        for name in form.needs:
            import_module(name)
    return form


def of_samples(stored: Mapping[str, Any]) -> str | None:
    """The ending for files of single samples of a model whose training data were such files; None for any other."""
    form = of(Path(f"x{stored.get('ending')}"))
    return form.ending(Path(f"x{stored['ending']}")) if isinstance(form, Stack) and form.writes else None


@contextmanager
def reading(path: Path, what: str, extra: str = "") -> Iterator[None]:
    """Errors within the block as one sentence with the file's name; extra: of pip, where a package is missing."""
    try:
        yield
    except SfumatoError:
        raise
    except ImportError as error:
        raise SfumatoError(
            f"{path} is read and written by {error.name}, which is not installed: pip install 'sfumato[{extra}]'"
        ) from None
    except Exception as error:  # a damaged file may raise any error of the package that reads it
        why = reason(error) if isinstance(error, OSError) else first_line(error)
        raise SfumatoError(f"{path} cannot be read as a {what}: {why}") from None
