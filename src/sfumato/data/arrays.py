"""Arrays, in memory or in .npy and .npz files -> (N, *shape) tensors in the user's dtype."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, counted
from ..machine import fits
from . import limits
from .file_format import Arrays, Stored, Unread, reading, with_gaps
from .lengths import ends, within
from .numpy_files import Archive, load
from .spec import DTYPES
from .statistics import blocks

if TYPE_CHECKING:
    from .rows import Samples

FILL_VALUES = (-999, -9999, -99999, -999999, 1e20, 9.969209968386869e36, -3.4028234663852886e38)  # of missing numbers
IMAGE_DTYPES = (torch.uint8, torch.uint16)
IMAGE_CHANNELS = (1, 3, 4)
MIN_IMAGE_SIDE = 8  # shorter axes are read as channels
CLASSES = "classes"  # of an .npz: the names of the classes whose numbers are its labels
MAP_BYTES = 1 << 30  # larger .npy files are memory-mapped


def read_npy(path: Path) -> np.ndarray:
    """The array in a .npy file; objects are never unpickled. Arrays larger than memory are read-only."""
    size = path.stat().st_size
    mode: Literal["r", "c"] | None = None if size <= MAP_BYTES and fits(size) else "c" if fits(size) else "r"
    return load(path, mode)


def read_named(path: Path, form: Arrays, samples: Callable[[Mapping[str, Any]], str]) -> tuple[dict[str, Any], Stored]:
    """(the arrays of a file by key, what a file of samples needs of it); as `read_npz` for other formats."""
    with reading(path, form.what, form.extra), form.open(path) as contents:
        chosen = samples(contents.arrays)
        count = contents.arrays[chosen].shape[:1]
        used = [key for key, value in contents.arrays.items() if value.shape[:1] == count]
        nbytes = sum(contents.arrays[key].nbytes for key in used)
        limits.require_file(path, nbytes)
        stored: Stored = {"ending": form.ending(path), "key": chosen, **contents.stored(chosen)}
        found: dict[str, Any] = {}
        if not fits(nbytes):
            rows = form.rows(path, chosen)
            if rows is None:
                raise SfumatoError(f"{path} does not fit into memory: save it as a .npy file, which is read from disk")
            found[chosen] = Unread(contents.arrays[chosen], rows)
        return {**contents.arrays, **{key: contents.read(key) for key in used if key not in found}, **found}, stored


def read_npz(path: Path, samples: Callable[[Mapping[str, np.ndarray]], str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by key. samples: the key of the samples among arrays of the right shapes and dtypes.

    Arrays with another number of entries than there are samples are not unpacked: their values are not those stored.
    """
    archive = Archive(path)
    chosen = archive.arrays[samples(archive.arrays)]
    used = [key for key, value in archive.arrays.items() if value.shape[:1] == chosen.shape[:1] or key == CLASSES]
    return {**archive.arrays, **archive.read(used)}


def to_tensor(obj: Any, where: str) -> Tensor:
    """Any array-like -> a CPU tensor of the same dtype, sharing memory where possible."""
    if isinstance(obj, Tensor):
        if obj.is_meta:
            raise SfumatoError(f"{where} is on the meta device, where tensors have no values")
        return _supported(obj.detach().cpu(), where)
    try:
        array = np.asarray(_filled(obj))
    except ValueError:
        raise SfumatoError(f"{where} {ragged(obj)}") from None
    if array.dtype == object and all(each is None or isinstance(each, int | float) for each in array.flat):
        array = array.astype(np.float64)  # None is NaN
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


def ragged(obj: Any) -> str:
    """What to say of a list whose entries are of several shapes."""
    try:
        shapes = [tuple(np.shape(each)) for each in obj]
    except ValueError:
        return "has an entry that is itself ragged: give each as an array of one shape"
    first = shapes[0]
    number, other = next(((i, shape) for i, shape in enumerate(shapes) if shape != first), (0, first))
    if not number:
        return f"has entries of shape {first}, which are no sequences of the layout that is known"
    both = f"has entries of several shapes, {first} and, number {number:,}, {other}"
    if len(first) == len(other) == 2:
        return f"{both}: sequences may differ in their steps alone, and have the same channels"
    return f"{both}: every sample must have the same shape, and sequences (L,) or (L, C) the same channels"


def _filled(obj: Any) -> Any:
    """A masked array, or a list of some, with NaN where values are masked; anything else as it is."""
    if isinstance(obj, list | tuple) and any(isinstance(part, np.ma.MaskedArray) for part in obj):
        return [_filled(part) for part in obj]
    if not isinstance(obj, np.ma.MaskedArray) or obj.dtype.kind not in "iuf":
        return obj
    return with_gaps(obj.data, np.ma.getmaskarray(obj))


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
            notes.append(f"Read as {counted(x.shape[1], 'channel')}; if channels are last, give (N, C, H, W).")
    image = x.ndim == 4 and x.dtype in IMAGE_DTYPES and x.shape[1] in IMAGE_CHANNELS
    return x, "image" if image else "array", notes


def _image_sides(height: int, width: int) -> bool:
    return min(height, width) >= MIN_IMAGE_SIDE and max(height, width) <= 4 * min(height, width)


def _channels_last(x: Tensor) -> bool:
    channels_first = x.shape[1] in IMAGE_CHANNELS
    return x.shape[3] in IMAGE_CHANNELS and not channels_first and _image_sides(x.shape[1], x.shape[2])


def require_unfilled(x: "Samples", where: str) -> None:
    """Raise SfumatoError if x (N, ...) holds one of `FILL_VALUES` further from all its values than those are apart."""
    if not isinstance(x, Tensor) or not x.dtype.is_signed:
        return
    known = x[~x.isnan()]
    for value in {known.min().item(), known.max().item()}:
        if value not in [torch.tensor(fill, dtype=x.dtype).item() for fill in _fill_values(x.dtype)]:
            continue
        rest = known[known != value]
        low, high = (rest.min().item(), rest.max().item()) if len(rest) else (value, value)
        if max(low - value, value - high) > high - low:
            raise SfumatoError(
                f"{where} holds {counted(len(known) - len(rest), 'value')} of {value:g}, far from all others "
                f"({low:g} to "
                f"{high:g}): what marks missing values is no number to learn from; write NaN there"
            )


def _fill_values(dtype: torch.dtype) -> list[float]:
    """The fill values that a dtype can hold."""
    top = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    return [fill for fill in FILL_VALUES if abs(fill) <= top]


def missing_share(x: "Samples", where: str, layout: str = "") -> tuple[float, ...]:
    """The share of missing values, NaN, in each channel of x (N, C, *spatial); () if none is missing.

    layout: of padded sequences, whose shares are of the values before their ends, and never ().

    Raises SfumatoError for infinite values, with their count and first position, and if no value is there.
    """
    if not x.dtype.is_floating_point:
        return ()
    gaps, infinite, first, start = torch.zeros(x.shape[1], dtype=torch.int64), 0, None, 0
    for block in blocks(x):
        gaps += block.isnan().transpose(0, 1).flatten(1).sum(1)
        bad = block.isinf()
        if bad.any():
            infinite += int(bad.sum())
            position = torch.nonzero(bad)[0].tolist()
            first = first or (start + position[0], *position[1:])
        start += len(block)
    if infinite:
        raise SfumatoError(
            f"{where} holds {counted(infinite, 'value that is', 'values that are')} infinite, the first at index "
            f"{first}: remove them, or write NaN where a value is missing"
        )
    share = gaps.double() / (math.prod(x.shape[2:]) * len(x))
    if bool((share == 1).all()):
        raise SfumatoError(f"{where} holds no number, all are missing (NaN)")
    found = tuple(share.tolist()) if layout or bool(gaps.any()) else ()
    return within(found, ends(x), x.shape[2]) if layout else found
