"""Collections on the disk -> a Source: folders of images, archives of them (.tar), tables (Parquet, Arrow)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import SfumatoError
from . import arrays, metadata, tables
from .column import Column, Unread, column
from .dataset import LABEL, Source
from .images import Images, Size, read_images
from .items import IMAGE_SUFFIXES, Files, Items, hidden
from .labels import label_column
from .rows import Samples, in_blocks
from .settle import CLASS_NAMES, columns, few, not_used, with_label
from .tabular import read_column, read_numbers
from .tars import Tars

SPLIT_NAMES = frozenset("train training test testing val valid validation dev".split())
TABLE_SUFFIXES = (".parquet", ".pq", ".arrow")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_folder(root: Path, size: Size | None, said: Container[str] = ()) -> Source:
    """What a folder holds: a saved data set, images, or else archives or tables."""
    arrow = tables.saved(root)
    if arrow:
        return open_table(arrow, size, root.resolve().name, said)
    files = sorted(p for p in root.rglob("*") if p.is_file() and not hidden(p.relative_to(root)))
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        return _without_images(root, files, size, said)
    items = Files(root, images)
    read = _read(items, size)
    relative = [PurePosixPath(items.names[i]) for i in read.kept]
    _refuse_splits(root, relative)
    beside = metadata.read(root, files, items.names, read.kept)
    conditions, notes = with_label(beside.columns, CLASS_NAMES), list(beside.notes)
    if LABEL not in conditions:
        conditions = _folder_classes(relative, notes) | conditions
    others = [
        (p.relative_to(root).as_posix(), "not an image")
        for p in files
        if p.suffix.lower() not in IMAGE_SUFFIXES and p.name.lower() not in metadata.NAMES
    ]
    source = _source(read, conditions, [str(path) for path in relative], root.resolve().name, notes)
    return _told(source, read, [*others, *beside.unused], "files")


def _source(
    read: Images, conditions: dict[str, Column], ids: list[str], name: str, notes: list[str], x: Samples | None = None
) -> Source:
    """Pictures with what lies beside them."""
    x = read.x if x is None else x
    return Source(x, None, [], ids, _kind(read), name, notes=notes, identity=read.identity).having(conditions)


def _without_images(root: Path, files: Sequence[Path], size: Size | None, said: Container[str]) -> Source:
    shards = [p for p in files if p.suffix.lower() == ".tar"]
    table = [p for p in files if p.suffix.lower() in TABLE_SUFFIXES]
    if shards:
        return open_tars(shards, size, root.resolve().name)
    if table:
        return open_table(table, size, root.resolve().name, said)
    raise SfumatoError(_no_images(root, files))


def open_tars(paths: Sequence[Path], size: Size | None, name: str) -> Source:
    """The pictures in archives, with the labels that lie beside them."""
    tars = Tars(paths)
    if not len(tars):
        why = f" ({tars.odd[0][0]}: {tars.odd[0][1]})" if tars.odd else ""
        raise SfumatoError(f"{tars.where} holds no pictures{why}")
    read = _read(tars, size)
    notes = list(tars.notes)
    conditions, unread = columns(
        {name: [cells[i] for i in read.kept] for name, cells in tars.fields.items()}, len(read.x)
    )
    if LABEL in conditions:
        conditions[LABEL] = label_column(conditions[LABEL])
    else:
        conditions = _folder_classes([tars.members[i] for i in read.kept], notes) | conditions
    source = _source(read, conditions, [tars.names[i] for i in read.kept], name, [*notes, *unread])
    return _told(source, read, tars.odd, "members")


def open_table(paths: Sequence[Path], size: Size | None, name: str, said: Container[str] = ()) -> Source:
    """The pictures or the numbers of a table, with the columns beside them; said: columns whose kind is given."""
    table = tables.Table(paths)
    if not len(table):
        raise SfumatoError(f"{table.where} is empty: its table has no rows")
    chosen = tables.columns(table)
    if chosen.pictures:
        return _table_of_pictures(table, chosen, size, name, said)
    found = read_numbers(table, chosen.numbers)
    arrays.require_finite(found.x, table.where)
    conditions, unread = _beside(table, chosen, said)
    dtype = str(found.x.dtype).removeprefix("torch.")
    first = f"{len(found.x):,} samples of shape {tuple(found.x.shape[1:])}, {dtype}."
    ids = [str(i) for i in range(len(found.x))]
    notes = [first, _columns(chosen), *found.notes, *unread]
    source = Source(found.x, None, [], ids, found.kind, name, notes=notes, identity=found.identity)
    return source.having(conditions)


def _table_of_pictures(
    table: tables.Table, chosen: tables.Columns, size: Size | None, name: str, said: Container[str]
) -> Source:
    assert chosen.pictures is not None
    items = tables.Cells(table, chosen.pictures)
    read = _read(items, size)
    conditions, unread = _beside(table, chosen, said)
    kept = np.array(read.kept, dtype=np.int64)
    conditions = {name: found.take(kept) for name, found in conditions.items()}
    x, ids = in_blocks(read.x, items.blocks, read.kept), [items.names[i] for i in read.kept]
    return _told(_source(read, conditions, ids, name, [_columns(chosen), *unread], x), read, [], "rows")


def _beside(table: tables.Table, chosen: tables.Columns, said: Container[str]) -> tuple[dict[str, Column], list[str]]:
    """The columns that are not the samples, the one of labels first, and a note on those that cannot be read."""
    found: dict[str, Column] = {}
    unread: dict[str, str] = {}
    if chosen.label is not None:
        found[LABEL] = label_column(replace(read_column(table, chosen.label), names=None), chosen.names)
    for name in chosen.beside:
        try:
            limit = len(table) if name in said or name in CLASS_NAMES else few(len(table))
            found.setdefault(name, read_column(table, name, limit))
        except Unread as why:
            unread[name] = str(why)
    return found, not_used(unread)


def _columns(chosen: tables.Columns) -> str:
    """What was understood of a table's columns."""
    held = f"pictures from {chosen.pictures!r}" if chosen.pictures else _some("numbers from", chosen.numbers)
    label = f", labels from {chosen.label!r}" if chosen.label else ""
    return f"Columns: {held}{label}."


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


def _folder_classes(relative: Sequence[PurePosixPath], notes: list[str]) -> dict[str, Column]:
    """Sub-folders are classes where every image is in one; otherwise there are none, and a note says why."""
    tops = [p.parts[0] if len(p.parts) > 1 else None for p in relative]
    if not any(tops):
        return {}
    loose = tops.count(None)
    if loose:
        notes.append(f"{loose:,} images lie beside the sub-folders, so the sub-folders were not taken as classes.")
        return {}
    return {LABEL: label_column(column([str(top) for top in tops]))}
