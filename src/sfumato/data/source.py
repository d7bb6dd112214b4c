"""One string or object -> a Source: the samples in the user's dtype and units, with ids, labels and notes."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from . import arrays, builtin
from .images import Images, read_images
from .items import Files
from .labels import encode_labels
from .memory import fits
from .picture import check_size, fit_cover
from .rows import Mapped, Samples
from .split import split

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .pgm .ppm .pnm .pbm .tga .jp2 .avif .ico".split()
)
SPLIT_NAMES = frozenset("train training test testing val valid validation dev".split())
Size = int | tuple[int, int]


@dataclass(frozen=True)
class Source:
    """A data set.

    x: (N, *shape) in the user's dtype and units, channels first: a tensor, or `Rows` that are read when asked for.
    labels: int64 (N,) indices into `classes`, or None.
    ids: a stable name for each sample (the path within a folder, the position in an array).
    groups: the key of each sample for the hold-out split; samples of one group are never divided.
    skipped: (path, reason) of each file that could not be used.
    notes: sentences on what was understood and done.
    bounds: declared (lowest, highest) value where the dtype does not say it.
    identity: a name for exactly these values of x, under which figures of them may be kept.
    """

    x: Samples
    labels: Tensor | None
    classes: list[str]
    ids: list[str]
    kind: str
    name: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    bounds: tuple[float, float] | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.ids)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def split(self, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
        """Indices (train, holdout), by a hash of each sample's group."""
        return split(self.groups, fraction)


def open(obj: Any, labels: Any = None, size: Size | None = None, name: str | None = None) -> Source:
    """Sniff a data source.

    obj: a folder of images (flat, or one sub-folder a class), a .npy or .npz file, the name of a built-in set
        ("fashion", "emoji", "digits"), a tensor or array (N, *shape), a pair (x, labels), or a dict with those keys.
    labels: one integer or string a sample; replaces those that the source brings.
    size: side in pixels, or (height, width), for images only.
    name: what to call it.

    Raises SfumatoError, in one sentence, for whatever cannot be used.
    """
    if isinstance(obj, Source):
        source = obj
    elif isinstance(obj, str | os.PathLike):
        source = _open_text(os.fspath(obj), size)
    elif _is_pair(obj):
        source = open(obj[0], labels=obj[1], size=size)
    else:
        source = _open_object(obj)
    if size is not None:
        source = _resized(source, size)
    if labels is not None:
        indices, classes = encode_labels(labels, len(source))
        source = replace(source, labels=indices, classes=classes)
    return _with_sensible_classes(replace(source, name=name or source.name))


def _open_text(text: str, size: Size | None) -> Source:
    if not text.strip():
        raise SfumatoError(f"no data given: name a folder, a file or one of {', '.join(builtin.NAMES)}")
    if text in builtin.NAMES:
        source = _built_in(text)
        if Path(text).exists():
            source.notes.append(f"This is the built-in set; for the file or folder of that name write ./{text}")
        return source
    path = Path(text).expanduser()
    if not path.exists():
        raise SfumatoError(_missing(path, text))
    if path.is_dir():
        return _open_folder(path, size)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _from_array(arrays.read_npy(path), None, str(path), path.stem)
    if suffix == ".npz":
        data, labels = arrays.read_npz(path)
        return _from_array(data, labels, str(path), path.stem)
    if suffix in IMAGE_SUFFIXES:
        raise SfumatoError(f"{path} is one image: give the folder that holds the images")
    raise SfumatoError(
        f"{path} is not a kind of data that can be read: give a folder of images, a .npy or .npz file, "
        f"or one of {', '.join(builtin.NAMES)}"
    )


def _missing(path: Path, text: str) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near_set = difflib.get_close_matches(text.lower(), builtin.NAMES, n=1)
    near_file = difflib.get_close_matches(path.name, siblings, n=1)
    if near_set:
        return f"{text} does not exist: did you mean the built-in set {near_set[0]!r}?"
    if near_file:
        return f"{text} does not exist: did you mean {path.parent / near_file[0]}?"
    return f"{text} does not exist, and it is none of the built-in sets ({', '.join(builtin.NAMES)})"


def _built_in(name: str) -> Source:
    data = builtin.load(name)
    x, kind, _ = arrays.arrange(torch.from_numpy(data.x), name)
    labels, classes = encode_labels(data.labels, len(x), data.classes)
    ids = data.ids or _positions(len(x))
    return Source(x, labels, classes, ids, kind, name, notes=[data.note], groups=data.groups or ids, bounds=data.bounds)


def _open_object(obj: Any) -> Source:
    if isinstance(obj, Mapping):
        x, labels = arrays.pick(obj, "the dict")
    else:
        x, labels = obj, None
    if isinstance(x, list | tuple) and x and all(isinstance(item, Tensor) for item in x):
        x = _stacked(x)
    if x is None or isinstance(x, bytes) or callable(x):
        raise SfumatoError(f"a {type(obj).__name__} is not data: give an array, a tensor, a folder or a file")
    return _from_array(x, labels, "the array", "array")


def _is_pair(obj: Any) -> bool:
    """Whether obj is (x, labels): a tuple of two whose first is itself a data source."""
    return (
        isinstance(obj, tuple)
        and len(obj) == 2
        and (isinstance(obj[0], str | os.PathLike | Mapping | list) or getattr(obj[0], "ndim", 0) > 0)
    )


def _stacked(items: Sequence[Tensor]) -> Tensor:
    if len({item.shape for item in items}) > 1:
        raise SfumatoError("the tensors in the list have different shapes: every sample must have the same")
    return torch.stack(list(items))


def _from_array(data: Any, labels: Any, where: str, name: str) -> Source:
    x, kind, notes = _arranged(data, where)
    arrays.require_finite(x, where)
    encoded, classes = (None, []) if labels is None else encode_labels(labels, len(x))
    dtype = str(x.dtype).removeprefix("torch.")
    notes.insert(0, f"{len(x):,} samples of shape {tuple(x.shape[1:])}, {dtype}.")
    return Source(x, encoded, classes, _positions(len(x)), kind, name, notes=notes)


def _arranged(data: Any, where: str) -> tuple[Samples, str, list[str]]:
    if isinstance(data, np.memmap) and not data.flags.writeable and not fits(data.nbytes):  # as `read_npy` maps it
        rows = Mapped(data, where)
        note = f"{rows.nbytes / 2**30:.1f} GiB are more than memory should hold: samples are read when needed."
        return rows, rows.kind, [*rows.notes, note]
    return arrays.arrange(arrays.to_tensor(data, where), where)


def _positions(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _open_folder(root: Path, size: Size | None) -> Source:
    files = sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p.relative_to(root)))
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise SfumatoError(_no_images(root, files))
    items = Files(root, images)
    try:
        read = read_images(items, size)
    except SfumatoError as error:
        raise SfumatoError(f"{root}: {error}") from None
    relative = [PurePosixPath(items.names[i]) for i in read.kept]
    _refuse_splits(root, relative)
    others = [(p.relative_to(root).as_posix(), "not an image") for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
    return _of_pictures(read, relative, root.resolve().name, others)


def _of_pictures(
    read: Images, relative: Sequence[PurePosixPath], name: str, others: Sequence[tuple[str, str]]
) -> Source:
    """A source of pictures, its classes being their folders."""
    dtype = str(read.x.dtype).removeprefix("torch.")
    notes = [f"{len(read.x):,} images of shape {tuple(read.x.shape[1:])}, {dtype}.", *read.notes]
    labels, classes = _folder_classes(relative, notes)
    skipped = sorted([*read.skipped, *others])
    if skipped:
        notes.append(f"{len(skipped):,} files were skipped.")
    ids = [str(path) for path in relative]
    kind = "image" if read.x.dtype in arrays.IMAGE_DTYPES else "array"
    return Source(read.x, labels, classes, ids, kind, name, skipped, notes, identity=read.identity)


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in relative.parts) or relative.name == "Thumbs.db"


def _no_images(root: Path, files: Sequence[Path]) -> str:
    if not files:
        return f"{root} is empty: it holds no images"
    array = next((p for p in files if p.suffix.lower() in (".npy", ".npz")), None)
    hint = f"; for an array give its file, e.g. {array}" if array else ""
    return f"{root} holds no images among its {len(files):,} files{hint}"


def _refuse_splits(root: Path, relative: Sequence[PurePosixPath]) -> None:
    """train/ and test/ with class folders inside are no classes: one of them is the data."""
    tops = sorted({p.parts[0] for p in relative})
    if all(top.lower() in SPLIT_NAMES for top in tops) and all(len(p.parts) > 2 for p in relative):
        raise SfumatoError(
            f"{root} holds {' and '.join(tops)} with sub-folders of their own: give one, e.g. {root / tops[-1]}"
        )


def _folder_classes(relative: Sequence[PurePosixPath], notes: list[str]) -> tuple[Tensor | None, list[str]]:
    """Sub-folders are classes where every image is in one; otherwise there are none, and a note says why."""
    tops = [p.parts[0] if len(p.parts) > 1 else None for p in relative]
    if not any(tops):
        return None, []
    loose = tops.count(None)
    if loose:
        notes.append(f"{loose:,} images lie beside the sub-folders, so the sub-folders were not taken as classes.")
        return None, []
    return encode_labels([str(top) for top in tops], len(tops))


def _with_sensible_classes(source: Source) -> Source:
    """A single class says nothing, so the model is unconditional; almost as many classes as samples is said."""
    if source.labels is None:
        return source
    if len(source.classes) > 1:
        if len(source) < 20 or 2 * len(source.classes) <= len(source):
            return source
        note = f"There are {len(source.classes):,} classes for {len(source):,} samples: are the labels classes?"
        return replace(source, notes=[*source.notes, note])
    note = f"All samples are of one class ({source.classes[0]}), so there is no class condition."
    return replace(source, labels=None, classes=[], notes=[*source.notes, note])


def _resized(source: Source, size: Size) -> Source:
    """Images of another size than `size` resized to cover it and cropped at the centre."""
    target = check_size(size)
    if len(source.shape) == 3 and source.shape[1:] == target:
        return source
    if source.kind != "image":
        raise SfumatoError(f"size is for images, but {source.name} holds arrays of shape {source.shape}")
    if not isinstance(source.x, Tensor):
        raise SfumatoError(
            f"{source.name} is larger than memory, and size cannot change it: resize it once and save it"
        )
    pictures = source.x.numpy().transpose(0, 2, 3, 1)
    resized = np.stack([fit_cover(np.ascontiguousarray(p), target) for p in pictures])
    if source.bounds is not None:  # the filter overshoots at edges
        resized = resized.clip(*(resized.dtype.type(bound) for bound in source.bounds))
    x = torch.from_numpy(resized)
    note = f"All images were resized to cover {target[0]} x {target[1]} and cropped at the centre, as asked."
    return replace(source, x=x.movedim(-1, 1).contiguous(), notes=[*source.notes, note], identity=None)


def class_counts(source: Source) -> dict[str, int]:
    """Samples per class name, in the order of the classes."""
    if source.labels is None:
        return {}
    counts = Counter(source.labels.tolist())
    return {name: counts[i] for i, name in enumerate(source.classes)}
