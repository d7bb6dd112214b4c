"""Zarr stores, folders that end in .zarr, by zarr: one array or groups of them, of versions 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SfumatoError
from ...files import require_plain
from ...registry import register
from .. import limits
from ..file_format import Arrays, Contents, Stored, standing, without_fill
from .netcdf import with_channels

# what unpacks numbers; others, such as pickle, may run code
CODECS = frozenset(
    "bytes transpose crc32c sharding_indexed zlib gzip zstd blosc lz4 bz2 lzma shuffle bitshuffle delta "
    "fixedscaleoffset quantize packbits bitround vlen-utf8".split()
)


@register("format", "zarr")
class Zarr(Arrays):
    what, extra = "Zarr store", "zarr"
    endings = (".zarr",)

    @contextmanager
    def open(self, path: Path) -> Iterator[Contents]:
        import zarr

        if not path.is_dir():
            raise SfumatoError(f"{path} is no folder: give the folder of the store, unpacked")
        for file in path.rglob("*"):
            if not file.is_dir():
                require_plain(file)
        root = zarr.open(str(path), mode="r")
        found = dict(_walk("", root)) if isinstance(root, zarr.Group) else {"x": root}
        numbers = {name: each for name, each in found.items() if each.dtype.kind in "biufUS"}
        for name, each in numbers.items():
            _require_codecs(each, f"{path}: {name!r}")
            limits.require_file(path, standing(each.chunks, each.dtype).nbytes)

        def shape(name: str) -> tuple[int, ...]:
            return with_channels(numbers[name].shape, _dims(numbers[name]))

        yield Contents(
            {name: standing(shape(name), each.dtype) for name, each in numbers.items()},
            lambda name: without_fill(numbers[name][...], numbers[name].attrs).reshape(shape(name)),
            lambda name: _stored(numbers[name]),
        )

    def rows(self, path: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
        import zarr

        root = zarr.open(str(path), mode="r")
        array = root[name] if isinstance(root, zarr.Group) else root
        return lambda rows: without_fill(array.oindex[rows], array.attrs)


def _walk(place: str, group: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a group and of those within it, by path."""
    for name, array in sorted(group.arrays()):
        yield f"{place}{name}", array
    for name, inner in sorted(group.groups()):
        yield from _walk(f"{place}{name}/", inner)


def _require_codecs(array: Any, where: str) -> None:
    """Raise SfumatoError for an array that is packed by anything but `CODECS`."""
    about = array.metadata.to_dict()
    used = [*(about.get("codecs") or ()), *(about.get("filters") or ()), about.get("compressor")]
    names = [_name(each) for each in used if each is not None]
    while nested := [each for each in used if isinstance(each, dict) and "codecs" in each.get("configuration", {})]:
        inner = [codec for each in nested for key in ("codecs", "index_codecs") for codec in _inner(each, key)]
        names += [_name(each) for each in inner]
        used = inner
    for name in names:
        if name not in CODECS:
            raise SfumatoError(f"{where} is packed by {name!r}, which is not unpacked here: save it without")


def _inner(codec: dict[str, Any], key: str) -> list[Any]:
    return list(codec["configuration"].get(key) or ())


def _name(codec: Any) -> str:
    about = codec if isinstance(codec, dict) else codec.get_config()
    return str(about.get("name") or about.get("id")).removeprefix("numcodecs.").lower()


def _dims(array: Any) -> list[str]:
    """The names of an array's dimensions, [] without them."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return [str(name) for name in names or ()]


def _stored(array: Any) -> Stored:
    units = array.attrs.get("units")
    return {"dims": _dims(array), **({"units": units} if isinstance(units, str) else {})}
