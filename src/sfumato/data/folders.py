"""Collections of pictures or rows -> a Source: folders of images, archives of them (.tar), tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import SfumatoError, counted
from . import arrays, captions, frames, metadata, sequences, tables
from .column import Column, Unread, column
from .formats import Size
from .images import IMAGE_SUFFIXES, ImageFiles, Images, Items, Part, read_images
from .kinds import CLASS_NAMES, TEXT_NAMES, columns, few, not_used, with_label
from .labels import label_column
from .lengths import layout_in
from .names import Asked, Pictures, class_names, listed, read_names
from .rows import Samples, in_blocks
from .source import LABEL, Source
from .table_columns import PictureColumn, read_column, read_lists, read_numbers
from .tars import Tars
from .walk import Files

Skipped = list[tuple[str, str]]


def open_pictures(root: Path, found: Files, size: Size | None, kinds: Collection[str], asked: Asked) -> Source:
    """The images among the files of a folder, with their metadata files, or else their sub-folders as classes.

    kinds: the columns of which the user has set a kind, which thus name no split.
    """
    every = ImageFiles(root, [p for p in found.paths if p.suffix.lower() in IMAGE_SUFFIXES])
    records = metadata.records(root, found.paths)
    split = metadata.choose(records, every.names, asked.split, kinds, str(root))
    items = _part(every, split.pictures)
    said = read_names(items.names, asked if split.column is None else asked._replace(split=None), str(root))
    read = read_images(_part(items, said.rows), size)
    kept = [said.rows[i] for i in read.kept]
    beside = metadata.read(records, every.names, [split.pictures[i] for i in kept], split.column)
    conditions = with_label(beside.columns, CLASS_NAMES)
    notes = [*found.notes, *split.notes, *said.notes, *beside.notes]
    if LABEL not in conditions:
        conditions = _folder_classes(said, read, notes) | conditions
    fields, left = _fields(items, said, read, size, notes)
    said_of = captions.beside(root, [items.names[i] for i in kept], found.paths)
    if said_of.column is not None:
        conditions.setdefault(captions.NAME, said_of.column)
    conditions |= fields
    used = {*beside.files, *said_of.files}
    others = [
        (p.relative_to(root).as_posix(), "not an image")
        for p in found.paths
        if p.suffix.lower() not in IMAGE_SUFFIXES and p not in used
    ]
    skipped = [*left, *said_of.odd, *others, *found.skipped]
    return _source(items, kept, read, root.resolve().name, conditions, notes, skipped, "file")


def open_archives(paths: Sequence[Path], size: Size | None, name: str, asked: Asked) -> Source:
    """The pictures in .tar archives, with the labels and fields beside them."""
    tars = Tars(paths)
    if not len(tars):
        why = f" ({tars.odd[0][0]}: {tars.odd[0][1]})" if tars.odd else ""
        raise SfumatoError(f"{tars.where} holds no pictures{why}")
    said = read_names(_members(tars), asked, tars.where, archive=True)
    read = read_images(_part(tars, said.rows), size)
    cells = {name: [column[said.rows[i]] for i in read.kept] for name, column in tars.fields.items()}
    found, unread = columns(cells, len(read.x))
    conditions, notes = with_label(found, [LABEL]), [*tars.notes, *said.notes]
    if LABEL not in conditions:
        conditions = _folder_classes(said, read, notes) | conditions
    fields, left = _fields(tars, said, read, size, notes)
    conditions |= fields
    kept = [said.rows[i] for i in read.kept]
    return _source(tars, kept, read, name, conditions, [*notes, *unread], [*left, *tars.odd], "member")


def _members(tars: Tars) -> list[str]:
    """The names of the members; where archives count alike, with the number of the archive before the file's."""
    if tars.names == tars.members:
        return tars.members
    paths = [(place[0], PurePosixPath(member)) for place, member in zip(tars.places, tars.members, strict=True)]
    return [str(path.with_name(f"{archive}-{path.name}")) for archive, path in paths]


def _part(items: Items, rows: Sequence[int]) -> Items:
    return items if list(rows) == list(range(len(items))) else Part(items, rows)


def _fields(
    items: Items, said: Pictures, read: Images, size: Size | None, notes: list[str]
) -> tuple[dict[str, Column], Skipped]:
    """(the other pictures of each sample as fields (N, C, H, W), missing where there is none; those not used)."""
    made = {}
    left = [(items.names[i], why) for i, why in said.left]
    for name, numbers in said.fields.items():
        own = [numbers[i] for i in read.kept]
        there = np.array([number is not None for number in own])
        beside = read_images(Part(items, [number for number in own if number is not None]), size)
        if not isinstance(beside.x, Tensor):
            raise SfumatoError(f"{items.where}: the pictures {name!r} do not fit into memory: set a smaller --size")
        present = np.zeros(len(own), bool)
        present[np.flatnonzero(there)[beside.kept]] = True
        values = beside.x.numpy()
        made[name] = Column(values, np.ones(len(values), bool)).scattered(present)
        notes += [f"{name}: {note}" for note in beside.notes]
        left += beside.skipped
    return made, left


def open_table(
    table: tables.TableFiles, size: Size | None, name: str, kinds: Mapping[str, str], asked: Asked
) -> Source:
    """The pictures or the numbers of a table, with its other columns as conditions.

    kinds: name -> kind of condition, where the user has set it: such a column is no part of the samples, and text with
    many values is read too. asked: perhaps the column of samples, and the split, if a column names one in each row.
    """
    if not len(table):
        raise SfumatoError(f"{table.where} is empty: its table has no rows")
    split, chosen = table.keep_split(asked.split, kinds)
    said = asked.columns or (asked.columns is None and not kinds and asked.key is None)
    if said and (asked.columns or frames.is_table(table, tables.label_of(table.schema, {}), split)):
        return frames.open_file(table, name, split, asked, chosen)
    roles = tables.roles(table, kinds, asked.key)
    roles = roles._replace(beside=[each for each in roles.beside if each != split])
    conditions, unread = _beside(table, roles, kinds)
    if roles.pictures is not None:
        items = PictureColumn(table, roles.pictures)
        read = read_images(items, size)
        kept = np.array(read.kept, dtype=np.int64)
        conditions = {name: found.take(kept) for name, found in conditions.items()}
        return _source(items, read.kept, read, name, conditions, [*chosen, str(roles), *unread], [], "row")
    layout, identity, whole = layout_in((table.schema.metadata or {}).get(b"sfumato", b"")) or asked.layout, None, ""
    if len(roles.numbers) == 1 and (lists := read_lists(table, roles.numbers[0], layout)):
        x: Samples
        x, layout, (first, *notes), whole = sequences.joined(lists, table.where, layout)
        kind = "array"
    else:
        x, kind, notes, identity = read_numbers(table, roles.numbers)
        first, layout = Source.headline(x), ""
    missing = arrays.missing_share(x, table.where, layout)
    arrays.require_unfilled(x, table.where)
    notes = [first, *chosen, str(roles), *notes, *unread]
    made: dict[str, Any] = {"notes": notes, "identity": identity, "missing": missing, "layout": layout, "whole": whole}
    return Source(x, kind, name, conditions, **made)


def _source(
    items: Items, kept: Sequence[int], read: Images, name: str, conditions: dict[str, Column], notes: Sequence[str],
    others: Skipped, what: str,
) -> Source:  # fmt: skip
    """A source of pictures with their conditions; kept: their numbers among the items; others: (path, reason) of what
    was skipped beside them."""
    kind = "image" if read.x.dtype in arrays.IMAGE_DTYPES else "array"
    skipped = sorted([*read.skipped, *others])
    notes = [Source.headline(read.x, "image"), *read.notes, *notes]
    if skipped:
        were = counted(len(skipped), f"{what} was", f"{what}s were")
        notes.append(f"{were} skipped ({listed(path for path, _ in skipped)}); `sfumato inspect` says why.")
    x, ids = in_blocks(read.x, items.blocks, kept), [items.names[i] for i in kept]
    missing = arrays.missing_share(read.x, name)
    return Source(x, kind, name, conditions, ids, skipped, notes, identity=read.identity, missing=missing)


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
            every = name in kinds or name in CLASS_NAMES or name.lower() in TEXT_NAMES
            limit = len(table) if every else few(len(table))
            found.setdefault(name, read_column(table, name, limit))
        except Unread as why:
            unread[name] = str(why)
    return found, not_used(unread)


def _folder_classes(said: Pictures, read: Images, notes: list[str]) -> dict[str, Column]:
    """Labels from sub-folders if every image is in one; otherwise there are none, and a note says why."""
    classes, why = class_names([said.folders[i] for i in read.kept])
    notes += why
    return {} if classes is None else {LABEL: label_column(column(classes))}
