"""Collections of pictures or rows -> a Source: folders of images, archives of them (.tar), tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import SfumatoError
from . import arrays, metadata, tables
from .column import Column, Unread, column
from .images import IMAGE_SUFFIXES, ImageFiles, Images, Items, Size, read_images
from .kinds import CLASS_NAMES, columns, few, not_used, with_label
from .labels import label_column
from .rows import in_blocks
from .source import LABEL, Source
from .table_columns import PictureColumn, read_column, read_numbers
from .tars import Tars

SPLIT_NAMES = frozenset("train training test testing val valid validation dev".split())


def open_pictures(root: Path, files: Sequence[Path], size: Size | None) -> Source:
    """The images among the files of a folder, with their metadata files, or else their sub-folders as classes."""
    items = ImageFiles(root, [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES])
    _refuse_splits(root, items.names)
    read = read_images(items, size)
    beside = metadata.read(root, files, items.names, read.kept)
    conditions, notes = with_label(beside.columns, CLASS_NAMES), list(beside.notes)
    if LABEL not in conditions:
        conditions = _folder_classes([items.names[i] for i in read.kept], notes) | conditions
    others = [
        (p.relative_to(root).as_posix(), "not an image")
        for p in files
        if p.suffix.lower() not in IMAGE_SUFFIXES and p not in beside.files
    ]
    return _source(items, read, root.resolve().name, conditions, notes, others, "files")


def open_archives(paths: Sequence[Path], size: Size | None, name: str) -> Source:
    """The pictures in .tar archives, with the labels and fields beside them."""
    tars = Tars(paths)
    if not len(tars):
        why = f" ({tars.odd[0][0]}: {tars.odd[0][1]})" if tars.odd else ""
        raise SfumatoError(f"{tars.where} holds no pictures{why}")
    read = read_images(tars, size)
    cells = {name: [column[i] for i in read.kept] for name, column in tars.fields.items()}
    found, unread = columns(cells, len(read.x))
    conditions, notes = with_label(found, [LABEL]), list(tars.notes)
    if LABEL not in conditions:
        conditions = _folder_classes([tars.members[i] for i in read.kept], notes) | conditions
    return _source(tars, read, name, conditions, [*notes, *unread], tars.odd, "members")


def open_table(paths: Sequence[Path], size: Size | None, name: str, kinds: Mapping[str, str]) -> Source:
    """The pictures or the numbers of a table, with its other columns as conditions.

    kinds: name -> kind of condition, where the user has set it: such a column is no part of the samples, and text with
    many values is read too.
    """
    table = tables.TableFiles(paths)
    if not len(table):
        raise SfumatoError(f"{table.where} is empty: its table has no rows")
    roles = tables.roles(table, kinds)
    conditions, unread = _beside(table, roles, kinds)
    if roles.pictures is not None:
        items = PictureColumn(table, roles.pictures)
        read = read_images(items, size)
        kept = np.array(read.kept, dtype=np.int64)
        conditions = {name: found.take(kept) for name, found in conditions.items()}
        return _source(items, read, name, conditions, [str(roles), *unread], [], "rows")
    x, kind, notes, identity = read_numbers(table, roles.numbers)
    arrays.require_finite(x, table.where)
    notes = [Source.headline(x), str(roles), *notes, *unread]
    return Source(x, kind, name, conditions, notes=notes, identity=identity)


def _source(
    items: Items, read: Images, name: str, conditions: dict[str, Column], notes: Sequence[str],
    others: Sequence[tuple[str, str]], what: str,
) -> Source:  # fmt: skip
    """A source of pictures with their conditions; others: (path, reason) of other files that were skipped."""
    kind = "image" if read.x.dtype in arrays.IMAGE_DTYPES else "array"
    skipped = sorted([*read.skipped, *others])
    notes = [Source.headline(read.x, "images"), *read.notes, *notes]
    if skipped:
        notes.append(f"{len(skipped):,} {what} were skipped.")
    x, ids = in_blocks(read.x, items.blocks, read.kept), [items.names[i] for i in read.kept]
    return Source(x, kind, name, conditions, ids, skipped, notes, identity=read.identity)


def _beside(
    table: tables.TableFiles, roles: tables.Roles, kinds: Mapping[str, str]
) -> tuple[dict[str, Column], list[str]]:
    """The condition columns of a table, labels first, and a note on those that cannot be read."""
    found: dict[str, Column] = {}
    unread: dict[str, str] = {}
    if roles.label is not None:
        whole = replace(read_column(table, roles.label), names=None)  # of two, 0 and 1 keep their numbers
        found[LABEL] = label_column(whole, roles.names)
    for name in roles.beside:
        try:
            limit = len(table) if name in kinds or name in CLASS_NAMES else few(len(table))
            found.setdefault(name, read_column(table, name, limit))
        except Unread as why:
            unread[name] = str(why)
    return found, not_used(unread)


def _refuse_splits(root: Path, names: Sequence[str]) -> None:
    """Raise SfumatoError for folders such as train/ and test/ with class folders inside: the user has to choose one."""
    paths = [PurePosixPath(name) for name in names]
    tops = sorted({p.parts[0] for p in paths})
    if all(top.lower() in SPLIT_NAMES for top in tops) and all(len(p.parts) > 2 for p in paths):
        raise SfumatoError(
            f"{root} holds {' and '.join(tops)} with sub-folders of their own: give one, e.g. {root / tops[-1]}"
        )


def _folder_classes(names: Sequence[str], notes: list[str]) -> dict[str, Column]:
    """Labels from sub-folders if every image is in one; otherwise there are none, and a note says why."""
    paths = [PurePosixPath(name) for name in names]
    loose = sum(len(p.parts) == 1 for p in paths)
    if 0 < loose < len(paths):
        notes.append(f"{loose:,} images are outside the sub-folders, so the sub-folders were not taken as classes.")
    return {} if loose else {LABEL: label_column(column([p.parts[0] for p in paths]))}
