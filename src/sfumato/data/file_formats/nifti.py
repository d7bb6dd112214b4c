"""Volumes in NIfTI files, by nibabel: (X, Y, Z) is one sample, (X, Y, Z, T) are T; the affine map is kept."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SfumatoError
from ...registry import register
from ..file_format import Scan, Stack, Stored


@register("format", "nifti")
class Nifti(Stack):
    what, extra = "NIfTI file", "nifti"
    needs = ("nibabel",)
    endings = (".nii", ".nii.gz")

    def scan(self, path: Path, key: str | None) -> Scan:
        image = _opened(path)
        shape = image.shape
        if not 2 <= len(shape) <= 4:
            raise SfumatoError(f"{path} is of shape {shape}: give volumes (X, Y, Z) or (X, Y, Z, T)")
        proxy = image.dataobj
        dtype = image.get_data_dtype() if (proxy.slope, proxy.inter) == (1, 0) else np.dtype(np.float64)
        stored: Stored = {"affine": np.asarray(image.affine).tolist()}
        return Scan(shape[3] if len(shape) == 4 else 1, (1, *shape[:3]), dtype, stored)

    def load(self, path: Path, key: str | None) -> np.ndarray:
        values = np.asanyarray(_opened(path).dataobj)
        return np.moveaxis(values, 3, 0)[:, None] if values.ndim == 4 else values[None, None]

    def unfit(self, shape: tuple[int, ...], stored: Mapping[str, Any]) -> str:
        return f"volumes of one channel are kept, not {shape}" if shape[0] != 1 or len(shape) > 4 else ""

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        import nibabel

        near = {"?": np.uint8, "e": np.float32}  # of types that the format does not have
        volumes = np.moveaxis(x[:, 0], 0, -1).astype(near.get(x.dtype.char, x.dtype))
        while volumes.ndim < 4:
            volumes = np.expand_dims(volumes, -2)
        image = nibabel.Nifti1Image(volumes, np.array(stored.get("affine", np.eye(4))), dtype=volumes.dtype)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", manifest.encode()))
        content = image.to_bytes()
        path.write_bytes(gzip.compress(content, 6) if stored["ending"] == ".nii.gz" else content)


def _opened(path: Path) -> Any:
    """The image of a file, whose values are not read yet."""
    import nibabel

    return nibabel.load(path)
