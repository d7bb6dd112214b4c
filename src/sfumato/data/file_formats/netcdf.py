"""NetCDF files, by xarray: variables in their units, with a first dimension that counts samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...registry import register
from ..file_format import Arrays, Contents, Stored, standing
from .hdf5 import datasets

CHANNELS = frozenset("c channel channels band bands level lev plev variable feature component".split())


@register("format", "netcdf")
class NetCDF(Arrays):
    what, extra = "NetCDF file", "netcdf"
    needs = ("xarray", "h5netcdf")
    endings = (".nc", ".nc4", ".cdf")

    @contextmanager
    def open(self, path: Path) -> Iterator[Contents]:
        import h5netcdf  # noqa: F401  (xarray's reader of NetCDF 4)
        import h5py
        import scipy.io  # noqa: F401  (that of NetCDF 3)
        import xarray

        with path.open("rb") as head:
            old = head.read(3) == b"CDF"
        if not old:
            with h5py.File(path, "r") as file:
                datasets(file, path)
        with xarray.open_dataset(path, engine="scipy" if old else "h5netcdf", decode_times=False) as dataset:
            numbers = {name: each for name, each in dataset.variables.items() if each.dtype.kind in "biufU"}

            def shape(each: Any) -> tuple[int, ...]:
                return with_channels(each.shape, each.dims)

            yield Contents(
                {str(name): standing(shape(each), each.dtype) for name, each in numbers.items()},
                lambda name: numbers[name].values.reshape(shape(numbers[name])),
                lambda name: _stored(numbers[name]),
            )

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        import xarray

        dims = ["sample", *stored.get("dims", [])[1:]]
        if len(dims) == x.ndim - 1 and x.shape[1] == 1:
            x = x[:, 0]
        elif len(dims) != x.ndim:
            dims = ["sample", *(f"axis_{i}" for i in range(1, x.ndim))]
        units = {"units": stored["units"]} if "units" in stored else {}
        small = x.dtype == np.float16  # which NetCDF does not have
        made = {stored["key"].rpartition("/")[2]: (dims, x.astype(np.float32) if small else x, units)}
        for name, values in beside.items():
            made[name] = (["sample", *(f"{name}_{i}" for i in range(1, values.ndim))], values, {})
        xarray.Dataset(made, attrs={"manifest": manifest}).to_netcdf(path, engine="h5netcdf")


def with_channels(shape: Sequence[int], dims: Sequence[Any]) -> tuple[int, ...]:
    """The shape of an array whose dimensions have names: (N, 1, *spatial) where none of them is one of channels.

    Of two dimensions or fewer it stays, as in (samples, features), and without names too.
    """
    named = len(dims) == len(shape) > 2
    if named and str(dims[1]).lower() not in CHANNELS and len(shape) < 6:
        return (shape[0], 1, *shape[1:])
    return tuple(shape)


def _stored(variable: Any) -> Stored:
    units = variable.attrs.get("units")
    return {"dims": [str(dim) for dim in variable.dims], **({"units": units} if isinstance(units, str) else {})}
