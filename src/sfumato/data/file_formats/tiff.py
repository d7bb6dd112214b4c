"""Stacks in TIFF files, by tifffile: the pages are samples, of whole numbers or floats."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SfumatoError
from ...registry import register
from .. import limits
from ..file_format import FILLS, Scan, Stack, Stored, without_fill


@register("format", "tiff")
class Tiff(Stack):
    what, extra = "TIFF stack", "tiff"
    needs = ("tifffile",)
    endings = (".tif", ".tiff")

    def scan(self, path: Path, key: str | None) -> Scan:
        with _opened(path) as file:
            if not file.series:
                raise ValueError("it has no page that can be read")
            if len(file.series) > 1:
                shapes = ", ".join(str(each.shape) for each in file.series[:3])
                raise SfumatoError(f"{path} holds pages of different sizes ({shapes} ..): save those of one size alone")
            series, page = file.series[0], file.pages.first
            limits.require_file(path, math.prod(page.chunks) * page.dtype.itemsize)
            shape = _arranged(series.shape, series.axes, path)[0]
            return Scan(shape[0], shape[1:], series.dtype, {})

    def load(self, path: Path, key: str | None) -> np.ndarray:
        with _opened(path) as file:
            series = file.series[0]
            shape, order = _arranged(series.shape, series.axes, path)
            pages = without_fill(series.asarray(), _no_data(file.pages.first))
            return pages.transpose(order).reshape(shape)

    def unfit(self, shape: tuple[int, ...], stored: Mapping[str, Any]) -> str:
        return "" if len(shape) in (3, 4) else f"pictures and volumes are kept, not {shape}"

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        import tifffile

        axes = "TC" + "ZYX"[5 - x.ndim :]
        colour = x.ndim == 4 and x.shape[1] in (3, 4) and x.dtype.kind == "u"
        if colour:
            axes, x = "TYXS", np.moveaxis(x, 1, -1)
        elif x.shape[1] == 1:
            axes, x = axes.replace("C", ""), x[:, 0]
        how = {"photometric": "rgb"} if colour else {"photometric": "minisblack", "planarconfig": None}
        about = {"axes": axes, "manifest": json.loads(manifest)}
        tifffile.imwrite(path, x, metadata=about, bigtiff=x.nbytes > 2**31, **how)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file; what the package only logs as an error, such as pages that are cut off, is raised."""
    import tifffile

    strict = _Strict(logging.ERROR)
    tifffile.logger().addHandler(strict)
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    finally:
        tifffile.logger().removeHandler(strict)


def _no_data(page: Any) -> dict[str, float]:
    """The value that a page declares to mean none, as GDAL writes it; empty without one."""
    tag = page.tags.get("GDAL_NODATA")
    try:
        return {} if tag is None else {FILLS[0]: float(tag.value.strip(" \0"))}
    except ValueError:
        return {}


class _Strict(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError(record.getMessage())


def _arranged(shape: tuple[int, ...], axes: str, path: Path) -> tuple[tuple[int, ...], list[int]]:
    """(the shape (N, C, *spatial), the order of a series' axes for it).

    C or S counts channels. Of the others the first counts samples, where there are more than two.
    """
    channels = [i for i, axis in enumerate(axes) if axis in "CS"]
    rest = [i for i in range(len(axes)) if i not in channels]
    if len(channels) > 1 or not 2 <= len(rest) <= 4:
        raise SfumatoError(f"{path} has the axes {axes}: save pages of one kind, one a sample")
    samples, spatial = (rest[:1], rest[1:]) if len(rest) > 2 else ([], rest)
    sides = [shape[i] for i in spatial]
    count, channel = [shape[i] for i in samples] or [1], [shape[i] for i in channels] or [1]
    return (*count, *channel, *sides), [*samples, *channels, *spatial]
