"""Collections on the disk -> a Source: folders of images, archives of them (.tar), tables (Parquet, Arrow)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from ..errors import SfumatoError
from . import arrays, tables
from .dataset import Source
from .images import Images, Size, read_images
from .items import IMAGE_SUFFIXES, Files, Items, hidden
from .labels import encode_labels
from .rows import in_blocks
from .tabular import read_numbers
from .tars import Tars

SPLIT_NAMES = frozenset("train training test testing val valid validation dev".split())
TABLE_SUFFIXES = (".parquet", ".pq", ".arrow")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_folder(root: Path, size: Size | None) -> Source:
    """What a folder holds: a saved data set, images, or else archives or tables."""
    arrow = tables.saved(root)
    if arrow:
        return open_table(arrow, size, root.resolve().name)
    files = sorted(p for p in root.rglob("*") if p.is_file() and not hidden(p.relative_to(root)))
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        return _without_images(root, files, size)
    items = Files(root, images)
    read = _read(items, size)
    relative = [PurePosixPath(items.names[i]) for i in read.kept]
    _refuse_splits(root, relative)
    others = [(p.relative_to(root).as_posix(), "not an image") for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
    notes: list[str] = []
    labels, classes = _folder_classes(relative, notes)
    ids = [str(path) for path in relative]
    source = Source(read.x, labels, classes, ids, _kind(read), root.resolve().name, notes=notes, identity=read.identity)
    return _told(source, read, others, "files")


def _without_images(root: Path, files: Sequence[Path], size: Size | None) -> Source:
    shards = [p for p in files if p.suffix.lower() == ".tar"]
    table = [p for p in files if p.suffix.lower() in TABLE_SUFFIXES]
    if shards:
        return open_tars(shards, size, root.resolve().name)
    if table:
        return open_table(table, size, root.resolve().name)
    raise SfumatoError(_no_images(root, files))


def open_tars(paths: Sequence[Path], size: Size | None, name: str) -> Source:
    """The pictures in archives, with the labels that lie beside them."""
    tars = Tars(paths)
    if not len(tars):
        why = f" ({tars.odd[0][0]}: {tars.odd[0][1]})" if tars.odd else ""
        raise SfumatoError(f"{tars.where} holds no pictures{why}")
    read = _read(tars, size)
    notes = list(tars.notes)
    labels: Tensor | None
    if tars.labels is not None:
        labels, classes = encode_labels([tars.labels[i] for i in read.kept], len(read.kept))
    else:
        labels, classes = _folder_classes([tars.members[i] for i in read.kept], notes)
    ids = [tars.names[i] for i in read.kept]
    source = Source(read.x, labels, classes, ids, _kind(read), name, notes=notes, identity=read.identity)
    return _told(source, read, tars.odd, "members")


def open_table(paths: Sequence[Path], size: Size | None, name: str) -> Source:
    """The pictures or the numbers of a table, with the labels of its column of labels."""
    table = tables.Table(paths)
    if not len(table):
        raise SfumatoError(f"{table.where} is empty: its table has no rows")
    chosen = tables.columns(table)
    notes = [_columns(chosen)]
    cells = table.column(chosen.label) if chosen.label else None
    if cells is not None and None in cells:
        notes.append(f"{cells.count(None):,} cells of {chosen.label!r} are empty, so there are no classes.")
        cells = None
    if chosen.pictures:
        return _table_of_pictures(table, chosen, cells, size, name, notes)
    found = read_numbers(table, chosen.numbers)
    arrays.require_finite(found.x, table.where)
    labels, classes = (None, []) if cells is None else encode_labels(cells, len(found.x), chosen.names)
    dtype = str(found.x.dtype).removeprefix("torch.")
    first = f"{len(found.x):,} samples of shape {tuple(found.x.shape[1:])}, {dtype}."
    ids = [str(i) for i in range(len(found.x))]
    notes = [first, *notes, *found.notes]
    return Source(found.x, labels, classes, ids, found.kind, name, notes=notes, identity=found.identity)


def _table_of_pictures(
    table: tables.Table, chosen: tables.Columns, cells: list[Any] | None, size: Size | None, name: str, notes: list[str]
) -> Source:
    assert chosen.pictures is not None
    items = tables.Cells(table, chosen.pictures)
    read = _read(items, size)
    given = None if cells is None else [cells[i] for i in read.kept]
    labels, classes = (None, []) if given is None else encode_labels(given, len(given), chosen.names)
    x, ids = in_blocks(read.x, items.blocks, read.kept), [items.names[i] for i in read.kept]
    source = Source(x, labels, classes, ids, _kind(read), name, notes=notes, identity=read.identity)
    return _told(source, read, [], "rows")


def _columns(chosen: tables.Columns) -> str:
    """What was understood of a table's columns."""
    held = f"pictures from {chosen.pictures!r}" if chosen.pictures else _some("numbers from", chosen.numbers)
    label = f", labels from {chosen.label!r}" if chosen.label else ""
    return f"Columns: {held}{label}{'; ' + _some('not used:', chosen.unused) if chosen.unused else ''}."


def _some(words: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{words} {', '.join(names[:8])}{more}"


def _read(items: Items, size: Size | None) -> Images:
    try:
        return read_images(items, size)
    except SfumatoError as error:
        raise SfumatoError(f"{items.where}: {error}") from None


def _kind(read: Images) -> str:
    return "image" if read.x.dtype in arrays.IMAGE_DTYPES else "array"


def _told(source: Source, read: Images, others: Sequence[tuple[str, str]], what: str) -> Source:
    """The source with what is to be said of its pictures."""
    dtype = str(read.x.dtype).removeprefix("torch.")
    notes = [f"{len(read.x):,} images of shape {tuple(read.x.shape[1:])}, {dtype}.", *read.notes, *source.notes]
    skipped = sorted([*read.skipped, *others])
    if skipped:
        notes.append(f"{len(skipped):,} {what} were skipped.")
    return replace(source, skipped=skipped, notes=notes)


def _no_images(root: Path, files: Sequence[Path]) -> str:
    if not files:
        return f"{root} is empty: it holds no images"
    array = next((p for p in files if p.suffix.lower() in (".npy", ".npz")), None)
    hint = f"; for an array give its file, e.g. {array}" if array else ", and neither .tar archives nor .parquet tables"
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
