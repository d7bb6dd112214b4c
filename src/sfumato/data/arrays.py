"""Arrays, in memory or in .npy and .npz files -> (N, *shape) tensors in the user's dtype."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..machine import fits
from .numpy_files import Archive, load
from .spec import DTYPES
from .statistics import blocks

if TYPE_CHECKING:
    from .rows import Samples

DATA_KEYS = ("x", "images", "data")
LABEL_KEYS = ("y", "labels", "label")
IMAGE_DTYPES = (torch.uint8, torch.uint16)
IMAGE_CHANNELS = (1, 3, 4)
MIN_IMAGE_SIDE = 8  # shorter axes are read as channels
MAP_BYTES = 1 << 30  # larger .npy files are memory-mapped


def read_npy(path: Path) -> np.ndarray:
    """The array in a .npy file; objects are never unpickled. Arrays larger than memory are read-only."""
    size = path.stat().st_size
    mode: Literal["r", "c"] | None = None if size <= MAP_BYTES and fits(size) else "c" if fits(size) else "r"
    return load(path, mode)


def read_npz(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(samples, the other arrays by key) of a .npz file, chosen by `pick`.

    Arrays with another number of entries than there are samples are not unpacked: their values are not those stored.
    """
    archive = Archive(path)
    chosen, rest = pick(archive.arrays, str(path))
    name = next(key for key, value in archive.arrays.items() if value is chosen)
    used = archive.read([name, *(key for key, value in rest.items() if value.shape[:1] == chosen.shape[:1])])
    return used[name], {key: used.get(key, value) for key, value in rest.items()}


def pick(arrays: Mapping[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
    """(samples, the rest): samples under `x`, `images` or `data`, else the first array of rank 2 or more."""
    chosen = next((key for key in DATA_KEYS if key in arrays), None)
    if chosen is None:
        ranked = (key for key, value in arrays.items() if key not in LABEL_KEYS and getattr(value, "ndim", 0) >= 2)
        chosen = next(ranked, None)
    if chosen is None:
        raise SfumatoError(
            f"{where} holds no data array: expected one of {', '.join(DATA_KEYS)} or an array of two or more axes, "
            f"but it holds {', '.join(map(str, arrays)) or 'nothing'}"
        )
    return arrays[chosen], {key: value for key, value in arrays.items() if key != chosen}


def to_tensor(obj: Any, where: str) -> Tensor:
    """Any array-like -> a CPU tensor of the same dtype, sharing memory where possible."""
    if isinstance(obj, Tensor):
        return _supported(obj.detach().cpu(), where)
    try:
        array = np.asarray(obj)
    except ValueError:
        raise SfumatoError(f"{where} is ragged: every sample must have the same shape") from None
    if array.dtype.kind == "c":
        raise SfumatoError(f"{where} is complex ({array.dtype}): give real and imaginary parts as two channels")
    if array.dtype.kind not in "biuf":
        raise SfumatoError(f"{where} must hold numbers, but its dtype is {array.dtype}")
    if array.dtype in (np.uint32, np.uint64):
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise SfumatoError(f"{where} has {array.dtype} values beyond 2^63 - 1: rescale them")
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _supported(x: Tensor, where: str) -> Tensor:
    if x.is_complex():
        raise SfumatoError(f"{where} is complex ({x.dtype}): give real and imaginary parts as two channels")
    if x.layout != torch.strided or x.is_quantized:
        raise SfumatoError(f"{where} must be a dense tensor, but it is {x.layout}")
    if x.dtype not in DTYPES.values():
        if x.dtype in (torch.uint32, torch.uint64):
            return x.to(torch.int64)
        raise SfumatoError(f"{where} has dtype {x.dtype}, which is not supported: use one of {', '.join(DTYPES)}")
    return x


def arrange(x: Tensor, where: str) -> tuple[Tensor, str, list[str]]:
    """The user's array (N, ...) -> (x as (N, *shape) channels first, kind, notes).

    Rank 1 is read as N numbers, rank 2 as (N, D), higher ranks as (N, C, *spatial). Two exceptions, for uint8 and
    uint16 only: (N, H, W) with sides long enough for an image is grey images, and (N, H, W, 1|3|4) channels-last
    images.
    """
    if x.ndim == 0:
        raise SfumatoError(f"{where} is a single number: give an array whose first axis counts the samples")
    if not x.numel():
        raise SfumatoError(f"{where} is empty: its shape is {tuple(x.shape)}")
    notes = []
    if x.ndim == 1:
        x = x[:, None]
        notes.append("One number per sample: read as vectors of length 1.")
    elif x.ndim == 3 and x.dtype in IMAGE_DTYPES and _image_sides(x.shape[1], x.shape[2]):
        x = x[:, None]
        notes.append("Read as grey images (N, H, W); for C channels of length L use another dtype.")
    elif x.ndim == 3 and x.shape[1] == x.shape[2] >= MIN_IMAGE_SIDE:
        notes.append(f"Read as {x.shape[1]} channels of length {x.shape[2]}; for grey images give (N, 1, H, W).")
    elif x.ndim == 4 and _channels_last(x):
        if x.dtype in IMAGE_DTYPES:
            x = x.movedim(-1, 1).contiguous()
            notes.append("Channels were last, (N, H, W, C): moved to (N, C, H, W).")
        else:
            notes.append(f"Read as {x.shape[1]} channels; if channels are last, give (N, C, H, W).")
    image = x.ndim == 4 and x.dtype in IMAGE_DTYPES and x.shape[1] in IMAGE_CHANNELS
    return x, "image" if image else "array", notes


def _image_sides(height: int, width: int) -> bool:
    return min(height, width) >= MIN_IMAGE_SIDE and max(height, width) <= 4 * min(height, width)


def _channels_last(x: Tensor) -> bool:
    channels_first = x.shape[1] in IMAGE_CHANNELS
    return x.shape[3] in IMAGE_CHANNELS and not channels_first and _image_sides(x.shape[1], x.shape[2])


def require_finite(x: "Samples", where: str) -> None:
    """Raise SfumatoError if x (N, ...) holds NaN or infinite values, with their count and first position."""
    if not x.dtype.is_floating_point:
        return
    count, first, start = 0, None, 0
    for block in blocks(x):
        bad = ~torch.isfinite(block)
        if bad.any():
            count += int(bad.sum())
            if first is None:
                position = torch.nonzero(bad)[0].tolist()
                first = (start + position[0], *position[1:])
        start += len(block)
    if count:
        raise SfumatoError(
            f"{where} holds {count:,} values that are NaN or infinite, the first at index {first}: "
            f"remove or fill them before training"
        )
