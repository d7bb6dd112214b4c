"""Tables of columns: frames of pandas or polars and files read by pyarrow, as rows to learn, and samples as frames."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import SfumatoError, an, counted, suggest
from ..files import atomic, first_line
from . import table_fields
from .column import Column
from .names import choose_split
from .source import Source
from .table_fields import Field, date_unit, is_date
from .table_schema import POLARS, TableSchema
from .tables import INDEX_NAMES, TableFiles, depth, is_number, leaf, without_views

if TYPE_CHECKING:
    from .names import Asked

IGNORE = "ignore"
FILES = (".csv", ".tsv", ".parquet", ".feather")
GROUP = 1 << 16  # rows that are written together
_DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16"}
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")


def is_frame(obj: Any) -> bool:
    """Whether an object is a data frame: of pandas, of polars, or a table of pyarrow."""
    return hasattr(obj, "columns") and (hasattr(obj, "__arrow_c_stream__") or hasattr(obj, "iloc"))


def has_lists(arrow: Any) -> bool:
    """Whether a table of pyarrow has a column of lists of numbers, which are samples: sequences, or vectors."""
    return any(depth(each) and is_number(leaf(each)) for each in arrow.schema.types)


def is_table(table: TableFiles, label: str | None, split: str | None) -> bool:
    """Whether the columns of a file are more than the numbers of a vector: a column that is neither a float nor, beside
    a label, a whole number, apart from that of the splits."""
    rest = [field for field in table.schema if field.name not in (label, split) and not _is_index(field.name)]
    if not all(_known(field.type) for field in rest):  # lists, encoded pictures
        return False
    return not all(_is_float(field.type) or (label is not None and is_number(field.type)) for field in rest)


def open_frame(obj: Any, arrow: Any, asked: Asked) -> Source:
    """The source of a frame in memory. arrow: its rows (`arrow_of`)."""
    from_pandas = hasattr(obj, "iloc")
    dtypes = {str(name): str(dtype) for name, dtype in obj.dtypes.items()} if from_pandas else {}
    choose_split({}, asked.split, "the frame", "row")
    kind = POLARS if type(obj).__module__.partition(".")[0] == POLARS else from_pandas
    return opened(arrow, "frame", "the frame", asked.columns, dtypes, kind, [])


def open_file(table: TableFiles, name: str, split: str | None, asked: Asked, notes: Sequence[str]) -> Source:
    """The source of a file of columns. split: the column that names the split of each row, which is left out."""
    if not len(table):
        raise SfumatoError(f"{table.where} is empty: its table has no rows")
    names = [each for each in table.schema.names if each != split and not _is_index(each)]
    return opened(_OfFile(table, names), name, table.where, asked.columns, {}, True, notes)


class _OfFile:
    """What `opened` reads of a table of pyarrow, of a file: a column when it is asked for, not all at once."""

    def __init__(self, table: TableFiles, names: list[str]) -> None:
        self.table, self.schema, self.column_names, self.num_columns = table, table.schema, names, len(names)
        self.column = table.column

    def __len__(self) -> int:
        return len(self.table)


def opened(
    arrow: Any, name: str, where: str, columns: Any, dtypes: Mapping[str, str], frame: bool | str, notes: Sequence[str]
) -> Source:  # fmt: skip
    """The source of a table of pyarrow (or `_OfFile`). columns: name -> kind, or the schema of a model."""
    if not len(arrow) or len(set(arrow.column_names)) < arrow.num_columns:
        raise SfumatoError(f"{where} has no rows, or several columns of one name: a table needs rows, and names")
    found = _Cells(arrow)
    left: dict[str, str] = {}
    if isinstance(columns, TableSchema):
        made = columns
    else:
        made, left = _schema(arrow, found, where, dict(columns or {}), dtypes, frame)
    x = made.encode(found)
    said = "; ".join(made.describe()[:12]) + (f"; and {len(made.fields) - 12} more" if len(made.fields) > 12 else "")
    told = [
        f"A table of {counted(len(made.fields), 'column')} ({said}); --column NAME:KIND says otherwise (category, "
        "number, ignore)."
    ]
    if all(field.constant for field in made.fields):
        told.append("All rows are equal: there is nothing to learn, and all samples will be this row.")
    if left:
        told.append(f"Columns left out: {', '.join(f'{each} ({why})' for each, why in list(left.items())[:8])}.")
    return Source(x, "table", name, notes=[*told, *notes], table=made)


class _Cells(Mapping[str, Column]):
    """The columns of a table of pyarrow by their names, each read when it is asked for: a million rows of text would
    take gigabytes."""

    def __init__(self, arrow: Any) -> None:
        self.arrow = arrow
        self.names = [each for each in arrow.column_names if _known(arrow.schema.field(each).type)]

    def __getitem__(self, name: str) -> Column:
        if name not in self.names:
            raise KeyError(name)
        return cells(self.arrow.column(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def _schema(
    arrow: Any, found: Mapping[str, Column], where: str, asked: dict[str, str], dtypes: Mapping[str, str],
    frame: bool | str,
) -> tuple[TableSchema, dict[str, str]]:  # fmt: skip
    """(the schema of a table's columns, why others are left out)."""
    for each, kind in asked.items():
        if kind not in (*table_fields.KINDS, IGNORE):
            known = (*table_fields.KINDS, IGNORE)
            raise SfumatoError(f"the column {each!r} cannot be of the kind {kind!r}: {suggest(kind, known)}")
        if each not in arrow.column_names:
            raise SfumatoError(f"{where} has no column {each!r}: {suggest(each, arrow.column_names)}")
    fields: list[Field] = []
    left: dict[str, str] = {}
    for each in arrow.column_names:
        if asked.get(each) == IGNORE:
            left[each] = "as asked"
        elif each not in found:
            left[each] = f"{arrow.schema.field(each).type} is not read"
        else:
            own = {**_own(each, arrow.column(each)), "dtype": dtypes.get(each, "")}
            made = table_fields.fit(found[each], asked.get(each), **own)
            if isinstance(made, Field):
                fields.append(made)
            else:
                left[each] = f"{made}; --key text learns it as text" if each == "text" else made
    if not fields:
        raise SfumatoError(f"{where} has no column to learn from: {', '.join(f'{n} ({w})' for n, w in left.items())}")
    return TableSchema(tuple(fields), frame), left


def _own(name: str, column: Any) -> dict[str, Any]:
    """The arguments of a field that its type decides."""
    from pyarrow import types

    kind = column.type
    if not types.is_dictionary(kind):
        return {"name": name, "type": str(kind)}
    column = column.unify_dictionaries()
    levels = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
    value = str(kind.value_type)
    spelt = table_fields.texts(np.array([*levels, None], object)[:-1], value)
    return {"name": name, "type": value, "dictionary": True, "ordered": bool(kind.ordered), "levels": spelt}


def arrow_of(obj: Any) -> Any:
    """The rows of a frame, or of a file of columns by its path, as a table of pyarrow."""
    try:
        import pyarrow as pa
    except ImportError:
        raise SfumatoError(
            "frames are read by pyarrow, which is not installed: pip install 'sfumato[parquet]'"
        ) from None
    if isinstance(obj, str | os.PathLike):
        path = Path(obj).expanduser()
        if not path.is_file():
            raise SfumatoError(f"{path} does not exist, or is a folder: give a file of rows, {', '.join(FILES)}")
        if path.suffix.lower() not in FILES:
            raise SfumatoError(f"{path} is no file of rows: give one that ends in {', '.join(FILES)}")
        files = TableFiles([path])
        if not len(files):
            raise SfumatoError(f"{path} is empty: its table has no rows")
        return pa.table({each: files.column(each) for each in files.schema.names})
    if not is_frame(obj):
        raise SfumatoError(f"rows of a table are a data frame or the path of a file, not {an(type(obj).__name__)}")
    try:
        return pa.Table.from_pandas(obj, preserve_index=False) if hasattr(obj, "iloc") else without_views(pa.table(obj))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SfumatoError(f"the frame cannot be read: {first_line(error)}") from None


def columns_of(arrow: Any, table: TableSchema) -> dict[str, Column]:
    """The columns of a table's schema that are among those of pyarrow, in the types that were learned."""
    found = {}
    for field in table.fields:
        if field.name in arrow.column_names:
            found[field.name] = cells(_as_learned(arrow.column(field.name), field))
    return found


def _as_learned(column: Any, field: Field) -> Any:
    """A column in the type of its field: that of a file is inferred, and may differ where cells are empty."""
    import pyarrow as pa
    from pyarrow import types

    plain = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
    if str(plain.type) == field.type:
        return plain
    try:
        return plain.cast(_type(field.type))
    except pa.ArrowException as error:
        raise SfumatoError(
            f"the column {field.name!r} was of the type {field.type} in training, and cannot be read so: correct or "
            f"empty the cell ({first_line(error)})"
        ) from None


def cells(column: Any) -> Column:
    """A column of pyarrow as whole numbers (dates too), floats, bools or text; NaN and empty text are missing."""
    import pyarrow as pa
    from pyarrow import compute, types

    column = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
    kind = column.type
    if types.is_date32(kind):
        column = column.cast(pa.int32())
    if is_date(str(kind)) or types.is_integer(kind):
        column = column.cast(pa.int64())
    present = column.is_valid().to_numpy()
    if types.is_floating(kind):
        values = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
        return Column(values, present & ~np.isnan(values))
    if types.is_boolean(kind):
        return Column(column.fill_null(False).to_numpy(), present)
    if types.is_null(kind):
        return Column(np.zeros(len(column)), present)
    if types.is_integer(column.type):
        return Column(compute.fill_null(column, 0).to_numpy(), present)
    coded = column.dictionary_encode().combine_chunks()  # equal cells are one text
    levels = np.array([*coded.dictionary.to_pylist(), None], object)
    texts = levels[coded.indices.fill_null(-1).to_numpy()]
    return Column(texts, present & (texts != ""))


def _is_index(name: str) -> bool:
    return not name or name.startswith(INDEX_NAMES)


def _is_float(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_floating(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(plain) or types.is_large_string(plain))


def _known(kind: Any) -> bool:
    """Whether a type of pyarrow can be a column."""
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    whole = types.is_integer(plain) and not types.is_uint64(plain)
    other = types.is_null(plain) or types.is_boolean(plain) or _is_text(plain)
    return bool(whole or types.is_floating(plain) or is_date(str(plain)) or other)


# -- samples ----------------------------------------------------------------------------------------------------------


def frame(table: TableSchema, x: Tensor) -> Any:
    """Rows x (N, D) as a frame of pandas or polars, as the training data were, or as a dict of arrays where that or
    pyarrow is not installed, or where they were another kind of frame."""
    try:
        import pyarrow  # noqa: F401, ICN001

        made = {True: _pandas, POLARS: _polars}.get(table.frame)
        return arrays(table, x) if made is None else made(arrow(table, x), table)
    except ImportError:
        return arrays(table, x)


def _pandas(made: Any, table: TableSchema) -> Any:
    """A table of pyarrow as a frame of pandas, with the dtypes of the training data."""
    import pandas as pd

    found = made.to_pandas(date_as_object=True)
    for field in table.fields:
        if field.dtype and str(found[field.name].dtype) != field.dtype and field.dtype != "category":
            found[field.name] = pd.Series(made.column(field.name).to_pylist(), dtype=field.dtype)
    return found


def _polars(made: Any, table: TableSchema) -> Any:
    """A table of pyarrow as a frame of polars, whose ordered categories are enumerations."""
    pl = import_module("polars")
    ordered = {field.name: pl.Enum(field.levels) for field in table.fields if field.ordered}
    return pl.from_arrow(made).cast(ordered)


def replaced(whole: Any, table: TableSchema, columns: Mapping[str, Column], like: Any) -> Any:
    """A table of pyarrow with some of its columns replaced, as a frame of the kind of `like` (pyarrow for a path)."""
    for name, column in columns.items():
        whole = whole.set_column(whole.column_names.index(name), name, _array(table.field(name), column))
    if hasattr(like, "iloc"):
        made = whole.to_pandas(date_as_object=True)
        return made.set_index(like.index).astype({name: like[name].dtype for name in like if name not in columns})
    if type(like).__module__.startswith("polars"):
        return import_module("polars").from_arrow(whole).cast(dict(like.schema))
    return whole


def arrays(table: TableSchema, x: Tensor) -> dict[str, np.ndarray]:
    """Rows x (N, D) as an array for each column; empty cells are None in text, NaT in dates, NaN in numbers."""
    found = {}
    for field, column in zip(table.fields, table.decode(x).values(), strict=True):
        values = column.values
        if is_date(field.type):
            values = values.astype(f"datetime64[{date_unit(field.type)}]")
            values[~column.present] = "NaT"
        elif values.dtype == object:
            values[~column.present] = None
        elif not column.present.all():
            values = values.astype(np.float64)
            values[~column.present] = np.nan
        else:
            values = values.astype(_DTYPES.get(field.type, field.type))
        found[field.name] = values
    return found


def arrow(table: TableSchema, x: Tensor) -> Any:
    """Rows x (N, D) as a table of pyarrow, of the types of the training data."""
    import pyarrow as pa

    decoded = table.decode(x)
    return pa.table({field.name: _array(field, decoded[field.name]) for field in table.fields})


def _array(field: Field, column: Column) -> Any:
    import pyarrow as pa

    empty = ~column.present
    kind = _type(field.type)
    if field.type == "null":
        return pa.nulls(len(column))
    if field.dictionary:
        index = {level: i for i, level in enumerate(field.levels)}
        spelt = table_fields.texts(column.values, field.type)
        places = pa.array([index[text] for text in spelt], pa.int32(), mask=empty)
        levels = pa.array(table_fields.values_of(field.levels, field.type).tolist(), kind)
        return pa.DictionaryArray.from_arrays(places, levels, ordered=field.ordered)
    plain = pa.array(column.values, mask=empty)
    if field.type.startswith("date32"):
        plain = plain.cast(pa.int32())
    return plain.cast(kind)


def _type(kind: str) -> Any:
    """The type of pyarrow of this name."""
    import pyarrow as pa

    if zoned := _ZONED.fullmatch(kind):
        return pa.timestamp(zoned[1], zoned[2])
    try:
        return pa.type_for_alias(kind)
    except ValueError:
        raise SfumatoError(f"a table has no columns of the type {kind!r:.60}") from None


def write(made: Any, path: Path) -> None:
    """Write a table of pyarrow as a .csv, .tsv, .parquet or .feather file."""
    with writing(path) as append:
        append(made)


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that appends a table of pyarrow to a .csv, .tsv, .parquet or .feather file, which is there at the end
    of the block. Few rows are kept until they make a group."""
    try:
        import pyarrow as pa
    except ImportError:
        raise SfumatoError(
            f"{path} is written by pyarrow, which is not installed: pip install 'sfumato[parquet]'"
        ) from None
    kept: list[Any] = []
    with atomic(path) as temporary, ExitStack() as opened:
        file: Any = None

        def flush() -> None:
            nonlocal file
            if kept:
                file = file or opened.enter_context(_writer(temporary, path.suffix.lower(), kept[0].schema))
                file.write_table(pa.concat_tables(kept))
                kept.clear()

        def append(made: Any) -> None:
            kept.append(made)
            if sum(map(len, kept)) >= GROUP:
                flush()

        yield append
        flush()


def _writer(path: Path, suffix: str, schema: Any) -> Any:
    """A writer of pyarrow for a file that is called so."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if suffix == ".parquet":
        return parquet.ParquetWriter(path, schema)
    if suffix == ".feather":
        return pa.ipc.new_file(str(path), schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
    plain = csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",", quoting_style="needed")
    return csv.CSVWriter(str(path), schema, write_options=plain)
