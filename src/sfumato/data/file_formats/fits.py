"""Images in FITS files, by astropy: (H, W) is one sample, (N, H, W) and (N, C, H, W) are N."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SfumatoError
from ...registry import register
from ..file_format import Scan, Stack, Stored

_WIDTHS = {8: "u1", 16: "i2", 32: "i4", 64: "i8", -32: "f4", -64: "f8"}  # by BITPIX


@register("format", "fits")
class Fits(Stack):
    what, extra = "FITS file", "fits"
    named = True
    needs = ("astropy.io",)
    endings = (".fits", ".fit", ".fts", ".fits.gz")

    def scan(self, path: Path, key: str | None) -> Scan:
        with _image(path, key) as (name, unit, others):
            shape = tuple(unit.shape)
            if len(shape) > 4:
                raise SfumatoError(f"{path}: {name!r} is of shape {shape}: give images (N, H, W) or (N, C, H, W)")
            scaled = unit.header.get("BSCALE", 1) != 1 or unit.header.get("BZERO", 0) != 0
            dtype = np.dtype("f8" if scaled else _WIDTHS[unit.header["BITPIX"]])
            notes = (f"The images are {name!r} (--key names others: {', '.join(others)}).",) if others else ()
            units = unit.header.get("BUNIT")
            stored = {"key": name, **({"units": units} if isinstance(units, str) else {})}
            count, *sides = _arranged(shape)
            return Scan(count, tuple(sides), dtype, stored, notes)

    def load(self, path: Path, key: str | None) -> np.ndarray:
        with _image(path, key) as (_, unit, _others):
            values = np.array(unit.data)
            return values.reshape(_arranged(values.shape))

    def unfit(self, shape: tuple[int, ...], stored: Mapping[str, Any]) -> str:
        return "" if len(shape) == 3 else f"images (C, H, W) are kept, not {shape}"

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        from astropy.io import fits

        dtype = {"?": np.uint8, "e": np.float32}.get(x.dtype.char, x.dtype)
        unit = fits.PrimaryHDU((x[:, 0] if x.shape[1] == 1 else x).astype(dtype))
        if "units" in stored:
            unit.header["BUNIT"] = stored["units"]
        unit.header["MANIFEST"] = manifest
        numbers = {name: values for name, values in beside.items() if values.dtype.kind in "biuf"}
        units = [fits.ImageHDU(values, name=name) for name, values in numbers.items()]
        file = io.BytesIO()
        fits.HDUList([unit, *units]).writeto(file, output_verify="silentfix")
        content = file.getvalue()
        path.write_bytes(gzip.compress(content, 6) if stored["ending"] == ".fits.gz" else content)


def _arranged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W), (N, H, W) or (N, C, H, W) -> (N, C, H, W)."""
    return (shape[0] if len(shape) > 2 else 1, shape[1] if len(shape) > 3 else 1, *shape[-2:])


@contextmanager
def _image(path: Path, key: str | None) -> Iterator[tuple[str, Any, list[str]]]:
    """(name, the image, the names of the others) of a file: the first of two axes or more, or the one that is named."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=False) as units:
            images = [each for each in units if each.is_image and len(each.shape) > 1]
            named: dict[str, Any] = {}
            for i, each in enumerate(images):
                named.setdefault(each.name or f"image {i}", each)
            chosen = [name for name in named if key is None or name.lower() == key.lower()]
            if not chosen:
                there = f"but {', '.join(named)}" if named else "and no others: tables are not read"
                raise SfumatoError(f"{path} has no image {'' if key is None else repr(key) + ' '}{there}")
            yield chosen[0], named[chosen[0]], [name for name in named if name != chosen[0]]
