"""HDF5 files, by h5py: their datasets by path, such as "entry/density". What lies in other files is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SfumatoError
from ...registry import register
from .. import limits
from ..file_format import Arrays, Contents, Stored, standing, without_fill

_TEXTS = 64  # strings that are read at once


@register("format", "hdf5")
class HDF5(Arrays):
    what, extra = "HDF5 file", "hdf5"
    needs = ("h5py",)
    endings = (".h5", ".hdf5", ".hdf")

    @contextmanager
    def open(self, path: Path) -> Iterator[Contents]:
        import h5py

        with h5py.File(path, "r") as file:
            found = datasets(file, path)
            texts = {name for name, each in found.items() if h5py.check_string_dtype(each.dtype) is not None}
            arrays = {name: standing(each.shape, "U1" if name in texts else each.dtype) for name, each in found.items()}
            plain = {name: array for name, array in arrays.items() if array.dtype.kind in "biufcSU"}
            rows: dict[str, np.ndarray] = {}
            if not any(array.ndim > 1 and array.dtype.kind in "biuf" for array in plain.values()):
                rows = _rows({name: each for name, each in found.items() if name not in texts}, path)
                plain |= {name: standing(row.shape, row.dtype) for name, row in rows.items()}

            def read(name: str) -> np.ndarray:
                if name in rows:
                    return rows[name]
                if name in texts:
                    return _texts(found[name], path)
                return without_fill(found[name][()], found[name].attrs)

            def stored(name: str) -> Stored:
                units = found[name].attrs.get("units") if name in found else None
                return {"units": units} if isinstance(units, str) else {}

            yield Contents(plain, read, stored)

    def rows(self, path: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
        import h5py

        dataset = h5py.File(path, "r")[name]  # open as long as it is read
        return lambda rows: without_fill(dataset[rows], dataset.attrs)

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            for name, values in {stored["key"]: x, **beside}.items():
                words = values.dtype.kind == "U"
                dataset = file.create_dataset(name, data=values.astype(object) if words else values)
                if values is x and "units" in stored:
                    dataset.attrs["units"] = stored["units"]
            file.attrs["manifest"] = manifest


def datasets(file: Any, path: Path) -> dict[str, Any]:
    """The datasets of an open file by their paths. Raises SfumatoError for what lies in other files."""
    import h5py

    found: dict[str, Any] = {}
    groups, seen = [("", file)], {file.id}
    while groups:
        place, group = groups.pop(0)
        for name in group:
            full = f"{place}{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                continue
            if isinstance(link, h5py.ExternalLink):
                raise SfumatoError(f"{path} takes {full!r} from another file: copy the data into one file")
            each = group[name]
            if isinstance(each, h5py.Group) and each.id not in seen:
                seen.add(each.id)
                groups.append((full + "/", each))
            elif isinstance(each, h5py.Dataset) and each.shape is not None:
                if each.external or each.is_virtual:
                    raise SfumatoError(f"{path} takes {full!r} from another file: copy the data into one file")
                _require_chunks(each, path)
                found[full] = each
    return found


def _require_chunks(dataset: Any, path: Path) -> None:
    """A chunk is unpacked as a whole, however few of its values the dataset has."""
    if dataset.chunks is not None:
        limits.require_file(path, standing(dataset.chunks, dataset.dtype).nbytes)


def _rows(found: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    """The rows of the dataset whose rows are arrays of several lengths, walks/0, walks/1 ..; {} if there is none.

    Their lengths are known, and counted, as they are read.
    """
    import h5py

    several = [name for name, each in found.items() if h5py.check_vlen_dtype(each.dtype) is not None]
    if not several:
        return {}
    name, dataset = several[0], found[several[0]]
    if len(several) > 1 or dataset.ndim != 1 or h5py.check_vlen_dtype(dataset.dtype).kind not in "biuf":
        raise SfumatoError(
            f"{path} has arrays of several lengths in {', '.join(map(repr, several))}, and a row of numbers for each "
            "sample in one dataset is read: save each sample as a dataset of its own, named by a number, walks/07"
        )
    rows, nbytes = dict[str, np.ndarray](), 0
    for i in range(len(dataset)):
        rows[f"{name}/{i}"] = without_fill(dataset[i], dataset.attrs)
        nbytes += rows[f"{name}/{i}"].nbytes
        limits.require_file(path, nbytes)
    return rows


def _texts(dataset: Any, path: Path) -> np.ndarray:
    """Strings, which a file may repeat for little: they are counted while they are read."""
    found: list[str] = []
    nbytes = 0
    for start in range(0, len(dataset), _TEXTS):
        part = dataset.asstr(errors="replace")[start : start + _TEXTS].tolist()
        nbytes += sum(map(len, part)) if dataset.ndim == 1 else 0
        limits.require_file(path, nbytes)
        found += part
    return np.array(found, dtype=object)
