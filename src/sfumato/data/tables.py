"""Tables (Parquet, Feather, CSV, TSV, or the Arrow files of Hugging Face's `datasets`), read by pyarrow.

The samples are a column of encoded pictures, else a column of lists of numbers, else all columns of single numbers, as
vectors (N, D), except those that the user makes conditions. The labels are in a column named label, or in one whose
metadata declare classes. Rows are read by group: the row groups of Parquet, the batches of Arrow.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from .. import cache
from ..errors import SfumatoError
from ..files import first_line, require_plain
from . import limits
from .arrow_files import read_arrow
from .images import together
from .kinds import IGNORE
from .names import choose_split, listed, split_of
from .picture import opened

LABEL_NAMES = ("label", "labels", "class", "cls", "category", "target", "y", "fine_label", "coarse_label")
PICTURE_NAMES = ("image", "img", "picture", "photo", "jpg", "png", "jpeg", "webp")
LIST_NAMES = ("x", "data", "values", "features")
SPLIT_NAMES = ("split", "set", "subset", "fold", "partition")  # columns of "train", "test" ..
INDEX_NAMES = ("__index_level", "Unnamed:")  # and no name: the row numbers that pandas writes
_SHOWN = 12  # most columns listed in an error
_NAMED = 8  # most columns listed in a note
# bytes of a value by Parquet's type, of a string those of its place
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "BYTE_ARRAY": 4}


class Roles(NamedTuple):
    """The use of each column; either `pictures` or `numbers` is set. names: of the classes, if known."""

    pictures: str | None
    numbers: list[str]
    label: str | None
    names: list[str] | None
    beside: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.numbers) - _NAMED} more" if len(self.numbers) > _NAMED else ""
        numbers = f"numbers from {', '.join(self.numbers[:_NAMED])}{more}"
        samples = f"pictures from {self.pictures!r}" if self.pictures else numbers
        labels = f", labels from {self.label!r}" if self.label else ""
        other = "" if self.pictures else ", --condition NAME:scalar makes one a condition"
        return f"Columns: {samples}{labels} (--key names another{other})."


@final
class TableFiles:
    """The rows of files with the same columns, or of a table of pyarrow in memory, in groups. Thread-safe.

    where: what errors call a table in memory.
    """

    def __init__(self, paths: Sequence[Path], table: Any = None, where: str = "") -> None:
        self.paths, self._table = list(paths), table
        self.where = where or together(paths)
        files = [_fragments(path) for path in self.paths] if table is None else [_in_memory(table)]
        self.schema = files[0][0]
        for path, (schema, _) in zip(self.paths, files, strict=False):
            if (schema.names, schema.types) != (self.schema.names, self.schema.types):
                raise SfumatoError(f"{path} has other columns than {self.paths[0]}: give files of the same table")
        self._groups = [group for _, groups in files for group in groups]
        self._rows: list[np.ndarray] | None = None  # of each group, where not all are read
        self._split: str | None = None
        self._repeated: dict[tuple[int, str], int] = {}  # bytes of repeated strings, of each group and column
        self.nbytes = sum(path.stat().st_size for path in self.paths) if table is None else table.nbytes
        self._allowed = max(limits.most(), limits.RATIO * self.nbytes)
        self._count([_rows(group) for group in self._groups])

    def _count(self, counts: list[int]) -> None:
        self.counts = counts
        self.starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def key(self) -> Any:
        whole = cache.stamps(self.paths) if self._table is None else _digest(self._table)
        return whole if self._split is None else [whole, self._split]

    def whole(self, name: str) -> list[Any]:
        """A column of all groups at once, as chunked arrays of pyarrow."""
        self._require_room([(group, name) for group in self._groups])
        return [self.group(i, [name]).column(0) for i, count in enumerate(self.counts) if count]

    def column(self, name: str) -> Any:
        """A column of all groups, as one chunked array of pyarrow."""
        import pyarrow as pa

        chunks = [chunk for part in self.whole(name) for chunk in part.chunks]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def _require_room(self, parts: Sequence[tuple[Any, str]]) -> None:
        """Raise SfumatoError if these columns of groups would take too much once each row has its own strings."""
        for group, name in parts:
            if (id(group), name) not in self._repeated:
                try:
                    self._repeated[id(group), name] = _repeated(group, name)
                except Exception as error:  # pyarrow raises many kinds, and indices may point beyond a dictionary
                    raise SfumatoError(f"{self.where} is damaged: {first_line(error)}") from None
        nbytes = sum(self._repeated[id(group), name] for group, name in parts)
        limits.require(nbytes, self._allowed, f"{self.where}, unpacked,")

    def keep_split(self, asked: str | None, other: Collection[str]) -> tuple[str | None, list[str]]:
        """Keep the rows of one split, where a column of strings names one in each row; (the column, a note).

        asked: the user's --split. other: columns that are something else. Raises SfumatoError for a split that is not
        there.
        """
        for field in self.schema:
            if field.name.lower() in SPLIT_NAMES and field.name not in other and is_string(field.type):
                names = [[split_of(cell or "") for cell in part.to_pylist()] for part in self.whole(field.name)]
                found = Counter(itertools.chain(*names))
                if None not in found:
                    chosen = choose_split(found, asked, self.where, "row", f"the column {field.name!r}")
                    self._keep([np.flatnonzero([name == chosen.name for name in part]) for part in names])
                    self._split = chosen.name
                    return field.name, chosen.note
        return None, choose_split({}, asked, self.where, "row").note

    def _keep(self, rows: Sequence[np.ndarray]) -> None:
        """Read these rows of each group alone; groups without any are no more."""
        full = [group for group, count in zip(self._groups, self.counts, strict=True) if count]
        pairs = [(group, some) for group, some in zip(full, rows, strict=True) if len(some)]
        self._groups, self._rows = [group for group, _ in pairs], [some for _, some in pairs]
        self._count([len(some) for some in self._rows])

    def group(self, number: int, names: Sequence[str]) -> Any:
        """Columns of a group, as a pyarrow table."""
        group = self._groups[number]
        try:
            self._require_room([(group, name) for name in names])
            found = group.to_table(columns=list(names), use_threads=False)
            found.validate(full=True)  # a damaged file may point beyond its end
            return found if self._rows is None else found.take(self._rows[number])
        except SfumatoError:
            raise
        except Exception as error:  # pyarrow raises many kinds
            raise SfumatoError(f"{self.where} is damaged: {first_line(error)}") from None


def _in_memory(table: Any) -> tuple[Any, list[Any]]:
    """(schema, groups) of a table of pyarrow."""
    from pyarrow import dataset

    table = without_views(table)
    return table.schema, list(dataset.dataset(table).get_fragments())


def _digest(table: Any) -> str:
    """The hash of the values of a table in memory."""
    found = blake2b(str(table.schema).encode(), digest_size=16)
    for batch in table.to_batches():
        for column in batch.columns:
            found.update(f"{column.offset} {len(column)} {column.null_count}".encode())
            for part in column.buffers():
                found.update(b"none" if part is None else memoryview(part))
    return found.hexdigest()


def _fragments(path: Path) -> tuple[Any, list[Any]]:
    """(schema, groups) of a file; the groups are fragments of a pyarrow dataset."""
    try:
        import pyarrow as pa
        from pyarrow import csv, dataset
    except ImportError:
        raise SfumatoError(
            f"{path} is read by pyarrow, which is not installed: pip install 'sfumato[parquet]'"
        ) from None
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            (whole,) = dataset.dataset(path, format="parquet").get_fragments()
            limits.require_file(path, _unpacked(whole.metadata))
            schema, groups = whole.physical_schema, whole.split_by_row_group()
        else:
            tabs = csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",")
            written = suffix in (".csv", ".tsv")
            table = csv.read_csv(path, parse_options=tabs) if written else without_views(read_arrow(path))
            if written:
                _require_header(path, table.schema.names)
            schema, groups = table.schema, list(dataset.dataset(table).get_fragments())
        for kind in (pa.struct(schema), *filter(pa.types.is_struct, schema.types)):
            [kind.field(i).name for i in range(kind.num_fields)]  # fails here where a name is not UTF-8
        return schema, groups
    except SfumatoError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise SfumatoError(f"{path} cannot be read as a table: {first_line(error)}") from None


def without_views(table: Any) -> Any:
    """A table of pyarrow with strings for the views of strings that polars keeps, also as levels of categories."""
    import pyarrow as pa
    from pyarrow import types

    for i, kind in enumerate(table.schema.types):
        if types.is_string_view(kind.value_type if types.is_dictionary(kind) else kind):
            plain = pa.dictionary(pa.int32(), pa.string(), kind.ordered) if types.is_dictionary(kind) else pa.string()
            table = table.set_column(i, table.column_names[i], table.column(i).cast(plain))
    return table


def _require_header(path: Path, names: Sequence[str]) -> None:
    """Raise SfumatoError unless each column of a .csv file has a name of its own.

    Numbers that rise, such as wavelengths, may be names; others are a row without names above it.
    """
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise SfumatoError(f"{path} has several columns named {twice[0]!r}: give each its own name") from None
        return
    if not all(one < next_one for one, next_one in itertools.pairwise(numbers)):
        raise SfumatoError(
            f"{path} begins with numbers ({listed(names)}) where the names of its columns belong: write a line of "
            "names above them, such as a,b,c"
        )


def _unpacked(metadata: Any) -> int:
    """Bytes of the values in a Parquet file: some millions of equal numbers are packed into a few bytes."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    parts = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(
        max(part.total_uncompressed_size, part.num_values * _WIDTHS.get(part.physical_type, 0)) for part in parts
    )


def _repeated(group: Any, name: str) -> int:
    """Bytes of the strings of a column that rows share, as dictionaries have them, once each row has its own."""
    from pyarrow import parquet

    if not hasattr(group, "row_groups"):  # of Arrow, which is mapped as it is stored
        return _written_out(group.to_table(columns=[name]).column(0))
    (row_group,) = group.row_groups
    about = group.metadata.row_group(row_group.id)
    parts = [about.column(i) for i in range(about.num_columns)]
    paths = [
        part.path_in_schema for part in parts
        if part.physical_type == "BYTE_ARRAY" and part.has_dictionary_page
        and f"{part.path_in_schema}.".startswith(f"{name}.")
    ]  # fmt: skip
    if not paths:
        return 0
    file = parquet.ParquetFile(group.path, read_dictionary=paths)
    return sum(_written_out(column) for column in file.read_row_group(row_group.id, columns=paths).columns)


def _written_out(values: Any) -> int:
    """Bytes of all strings behind the indices of dictionaries, also within lists and structs."""
    from pyarrow import compute, types

    if hasattr(values, "chunks"):
        return sum(map(_written_out, values.chunks))
    values = getattr(values, "storage", values)
    if types.is_struct(values.type):
        return sum(map(_written_out, values.flatten()))
    if depth(values.type):
        return _written_out(values.flatten())
    if not types.is_dictionary(values.type) or is_number(values.type.value_type):
        return 0
    lengths = compute.binary_length(values.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    counts = np.bincount(values.indices.drop_null().to_numpy(), minlength=len(lengths))
    return int(counts @ lengths.astype(np.int64))


def _rows(fragment: Any) -> int:
    if hasattr(fragment, "row_groups"):  # of Parquet, where `count_rows` is that of the whole file
        return sum(group.num_rows for group in fragment.row_groups)
    return int(fragment.count_rows())


def saved_splits(folder: Path) -> list[Path]:
    """The folders of the splits that `datasets` saved in this folder; [] where there are none."""
    if not (folder / "dataset_dict.json").is_file():
        return []
    return sorted(path for path in folder.iterdir() if (path / "state.json").is_file())


def saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved in this folder; [] where it is none."""
    state = folder / "state.json"
    if not state.is_file():
        return []
    require_plain(state)
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text("utf-8"))["_data_files"]]
        files = [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise SfumatoError(f"{state} is damaged: save the data set again") from None
    for file in files:
        require_plain(file)
    return files


def roles(table: TableFiles, kinds: Mapping[str, str], key: str | None = None) -> Roles:
    """What each column is for; SfumatoError, with the columns, where none can be learned from.

    kinds: name -> kind of condition, where it is given: such a column is a condition, and no part of the samples. key:
    the one column of samples, where it is given.
    """
    features = _features(table.schema)
    types = {field.name: field.type for field in table.schema}
    free = {name for name in types if kinds.get(name, IGNORE) == IGNORE}
    label = label_of(table.schema, kinds)
    names = _names(features.get(label, {})) if label else None
    label = None if label == key else label
    rest = [name for name in types if name != label and name in free and key in (None, name)]
    encoded = [name for name in rest if _holds_bytes(types[name]) and _is_picture(table, name)]
    lists = [name for name in rest if depth(types[name]) > 0 and is_number(leaf(types[name]))]
    single = [name for name in rest if is_number(types[name]) and not name.startswith(INDEX_NAMES) and name]
    pictures = _first(encoded, PICTURE_NAMES)
    chosen = [] if pictures else [found] if (found := _first(lists, LIST_NAMES)) else single
    if not pictures and not chosen:
        shown = [f"{name} ({kind})" for name, kind in list(types.items())[:_SHOWN]]
        more = f" and {len(types) - _SHOWN} more" if len(types) > _SHOWN else ""
        called_so = "" if key is None else f" named {key!r}"
        raise SfumatoError(
            f"{table.where} has no column{called_so} to learn from: pictures (encoded bytes), numbers or lists of "
            f"numbers; it has {', '.join(shown)}{more}"
        )
    if left := [name for name in chosen if name in kinds]:
        raise SfumatoError(
            f"{table.where}: {left[0]!r} is one of the numbers of each sample and cannot be ignored: remove the column "
            "from the table, or make it a condition"
        )
    used = {pictures, label, *chosen}
    return Roles(pictures, chosen, label, names, [name for name in types if name not in used])


def label_of(schema: Any, kinds: Mapping[str, str]) -> str | None:
    """The column of labels: one whose metadata declare classes, or one that is named so."""
    called = [name for name, feature in _features(schema).items() if feature.get("_type") == "ClassLabel"]
    classes = [f.name for f in schema if kinds.get(f.name, IGNORE) in (IGNORE, "label") and _can_be_label(f.type)]
    return next((name for name in [*called, *LABEL_NAMES] if name in classes), None)


def _first(names: list[str], liked: Sequence[str]) -> str | None:
    return next((name for name in liked if name in names), names[0] if names else None)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The features of the columns that `datasets` writes into the schema's metadata."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _names(feature: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes, if a feature declares any."""
    names = feature.get("names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def is_string(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)


def _can_be_label(kind: Any) -> bool:
    from pyarrow import types

    return is_string(kind) or types.is_integer(kind) or types.is_boolean(kind)


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def depth(kind: Any) -> int:
    """How many lists are nested in a type."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return 1 + depth(kind.value_type) if is_list else 0


def leaf(kind: Any) -> Any:
    kind = getattr(kind, "storage_type", kind)
    return leaf(kind.value_type) if depth(kind) else kind


def encoded_bytes(cell: Any) -> bytes | None:
    """The encoded picture in a cell: bytes, or the struct that `datasets` writes."""
    return cell.get("bytes") if isinstance(cell, dict) else cell


def _is_picture(table: TableFiles, name: str) -> bool:
    """Whether one of the first cells of a column starts as a picture does."""
    first = next((i for i, count in enumerate(table.counts) if count), None)
    for cell in [] if first is None else table.group(first, [name]).column(0).slice(0, 8).to_pylist():
        try:
            with opened(io.BytesIO(encoded_bytes(cell) or b"")):
                return True
        except Exception:  # Pillow's decoders raise whatever they like
            continue
    return False
