"""Tables of columns as rows to learn, and back: every value bit for bit, types, levels, missing cells, dates, grids."""

import datetime
import json

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato.data import DataSpec, frames
from sfumato.data.table_fields import Field
from sfumato.data.table_schema import TableSchema
from sfumato.data.tables import TableFiles
from sfumato.errors import SfumatoError

pa = pytest.importorskip("pyarrow")
csv, feather = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

N = 4000
RNG = np.random.default_rng(0)
HOLES = RNG.uniform(size=N) < 0.2


def column(values, kind=None, holes=None):
    return pa.array(values, kind, mask=holes) if holes is not None else pa.array(values, kind)


EVERY = {
    "price": column(RNG.lognormal(8, 1, N).astype(np.int64)),
    "carat": column(np.round(RNG.lognormal(-0.5, 0.4, N), 2)),
    "tenth": column(np.round(RNG.normal(61, 3, N), 1).astype(np.float32), pa.float32(), HOLES),
    "real": column(RNG.normal(size=N)),
    "single": column(RNG.normal(size=N).astype(np.float32)),
    "half": column(0.5 * RNG.integers(-100, 100, N), holes=HOLES),
    "byte": column(RNG.integers(-100, 100, N).astype(np.int8)),
    "large": column(2**60 + 1000 * RNG.integers(0, 10**6, N)),
    "rain": column(np.where(RNG.uniform(size=N) < 0.4, 0.0, RNG.gamma(2.0, 3.0, N)), holes=HOLES),
    "zip": column(RNG.choice([1010, 8400, 90210, 7], N)),
    "cut": column(RNG.choice(["Fair", "Good", "Ideal"], N).tolist(), holes=HOLES),
    "flag": column(RNG.uniform(size=N) < 0.3),
    "perhaps": column(RNG.uniform(size=N) < 0.3, holes=HOLES),
    "day": column(RNG.integers(18000, 20000, N).astype("datetime64[D]"), pa.date32(), HOLES),
    "moment": column((10**15 + 3600 * 10**6 * RNG.integers(0, 9999, N)).astype("datetime64[us]")),
    "zoned": pa.array(86400 * RNG.integers(0, 9999, N), pa.timestamp("s", "Europe/Paris")),
    "grade": pa.array(RNG.choice(["a", "b"], N).tolist()).dictionary_encode(),
    "city": column([f"city {i}" for i in RNG.integers(0, 3000, N)]),
    "same": column([3.5] * N),
    "never": pa.nulls(N, pa.float64()),
    "nothing": pa.nulls(N),
}  # fmt: skip


@pytest.fixture(scope="module")
def source():
    return sf.data.open(pa.table(EVERY))


def test_every_column_comes_back_bit_for_bit(source):
    """But for continuous numbers, which are float32 within, and lie between their quantiles."""
    made = frames.arrow(source.table, source.x)
    assert made.column_names == list(EVERY)
    for name, wanted in EVERY.items():
        found = made.column(name).combine_chunks()
        assert found.type == wanted.type, name
        assert found.is_null().equals(wanted.is_null()), name
        if name in ("real", "single", "rain"):
            apart = np.abs(np.nan_to_num(found.to_numpy(False)) - np.nan_to_num(wanted.to_numpy(False)))
            assert apart.max() < 1e-3 * float(np.nanstd(wanted.to_numpy(False))), name
        elif name == "large":  # of a million cells, float32 may miss one by one
            apart = np.abs(found.to_numpy() - wanted.to_numpy()) / 1000
            assert apart.max() <= 1 and (apart > 0).mean() < 0.2
        else:
            assert found.to_pylist() == wanted.to_pylist(), name
    zeros = EVERY["rain"].fill_null(1.0).to_numpy() == 0
    assert (made.column("rain").to_numpy()[zeros] == 0).all()


def test_numbers_are_normal_whatever_their_law(source):
    for place in range(source.table.numbers):
        assert stats.kstest(source.x[:, place].numpy(), "norm").pvalue > 1e-4, place


def test_the_kinds_that_are_inferred(source):
    kinds = {field.name: field.kind for field in source.table.fields}
    numbers = {
        "price", "carat", "tenth", "real", "single", "half", "byte", "large", "rain", "day", "moment", "zoned",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "number"} == numbers
    of = {field.name: field for field in source.table.fields}
    assert (of["carat"].decimals, of["tenth"].decimals, of["half"].step) == (2, 1, 5.0)
    assert of["rain"].atoms == (0.0,) and of["rain"].states == (3,) and of["carat"].states == ()
    assert of["city"].states == (55, 55) or of["city"].states[0] ** 2 >= len(of["city"].levels)
    assert max(source.table.parts) <= 256
    words = dict(zip(of, source.table.describe(), strict=True))
    assert words["half"] == "half: number, in steps of 0.5, may be missing"
    assert words["moment"].startswith("moment: number, dates, in steps of 3.6e+09")
    assert "category of 3 levels (Fair, Good, Ideal), may be missing" in words["cut"]


def test_a_schema_is_plain_json_in_the_spec(source):
    spec = DataSpec.fit(source)
    again = DataSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and again.table == source.table
    with pytest.raises(SfumatoError, match="needs rising values"):
        Field("a", "number", "double", values=(1.0, 0.0), shares=(0.5, 1.0))
    with pytest.raises(SfumatoError, match="no value"):
        Field("a", "category", "int64", levels=("x",)).decode(None, np.zeros((1, 1), np.int64))
    number = {"name": "a", "kind": "number", "values": (1.0,), "shares": (1.0,)}
    for wrong, words in (
        ({"type": "struct"}, "cannot be a number of the type 'struct'"), ({"type": "string"}, "cannot be a number"),
        ({"type": "int64", "origin": "9" * 30}, "needs whole numbers"), ({"type": "int64", "step": 0.5}, "needs whole"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            Field(**number, **wrong)
    with pytest.raises(SfumatoError, match="fields.0.kind: expected text"):
        TableSchema.from_dict({"fields": [{"name": "a", "kind": 3, "type": "int64"}], "frame": True})
    with pytest.raises(SfumatoError, match="another number of columns than its table"):
        DataSpec.from_dict(spec.to_dict() | {"shape": [len(spec.normaliser.mean), 1]})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".feather"])
def test_files_are_tables_and_are_written_alike(tmp_path, suffix):
    own = {name: EVERY[name] for name in ("price", "carat", "cut", "flag", "day", "half")}
    path, back = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    first = sf.data.open(pa.table(own))
    frames.write(frames.arrow(first.table, first.x), path)
    read = sf.data.open(path)
    assert read.kind == "table" and [field.name for field in read.table.fields] == list(own)
    frames.write(frames.arrow(read.table, read.x), back)
    again = sf.data.open(back, conditions=DataSpec.fit(read))
    assert again.table == read.table
    for name, wanted in first.table.decode(first.x).items():
        found = again.table.decode(again.x)[name]
        assert (found.present == wanted.present).all(), name
        assert (found.values[found.present] == wanted.values[found.present]).all(), name


def test_a_file_is_read_a_column_at_a_time_as_the_frame_is(tmp_path, source, monkeypatch):
    """Also in several groups; equal texts are one text, and the numbers of the rows are no list."""
    table, read, group = pa.table(EVERY), [], TableFiles.group
    parquet.write_table(table, tmp_path / "every.parquet", row_group_size=1500)
    monkeypatch.setattr(TableFiles, "group", lambda self, i, names: read.append(list(names)) or group(self, i, names))
    found = sf.data.open(tmp_path / "every.parquet")
    assert torch.equal(found.x, source.x) and [f.name for f in found.table.fields] == list(EVERY)
    assert {len(names) for names in read} == {1} and {name for names in read for name in names} >= {"price", "city"}
    cut = frames.cells(pa.chunked_array([table["cut"].chunk(0), table["cut"].chunk(0)]))
    assert len({id(text) for text in cut.values}) == 4 and cut.values[:N].tolist() == table["cut"].to_pylist()
    assert len(found.ids) == N and found.ids[-1] == str(N - 1) and found.ids[1:3] == ["1", "2"]


def test_values_outside_the_schema_are_refused(source):
    spec = DataSpec.fit(source)
    for name, values, words in (
        ("flag", pa.nulls(N, pa.bool_()), "'flag' has empty cells"),
        ("zip", column([4] * N), "'zip' has no level '4'"),
    ):
        with pytest.raises(SfumatoError, match=words):
            sf.data.open(pa.table({**EVERY, name: values}), conditions=spec)
    with pytest.raises(SfumatoError, match="no column 'price'"):
        sf.data.open(pa.table({"carat": EVERY["carat"]}), conditions=spec)


def test_levels_with_a_comma_are_told_apart():
    table = pa.table({"tree": ["elm, old", "ash"] * 20})
    assert sf.data.open(table).table.describe() == ["tree: category of 2 levels (ash, 'elm, old')"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_cells_of_a_number_may_be_empty():
    height = np.round(RNG.normal(12, 3, N), 1)
    table = pa.table({"height": column(height, holes=HOLES)})
    field = sf.data.open(table).table.field("height")
    whole, parts = field.cells(frames.cells(pa.chunked_array([height]))), field.cells(frames.cells(table["height"]))
    assert field.step and np.array_equal(whole[~HOLES], parts[~HOLES])


def test_a_kind_can_be_said_and_columns_left_out():
    table = pa.table({"zip": RNG.integers(10000, 10100, 500), "n": range(500), "id": [f"x{i}" for i in range(500)]})
    usual = sf.data.open(table)
    assert [(f.name, f.kind) for f in usual.table.fields] == [("zip", "number")]
    assert any("n (it counts the rows), id (each of its texts occurs once)" in note for note in usual.notes)
    said = sf.data.open(table, columns={"zip": "category", "n": "number", "id": "ignore"})
    assert [(f.name, f.kind) for f in said.table.fields] == [("zip", "category"), ("n", "number")]
    for columns, words in (
        ({"zap": "category"}, "no column 'zap': did you mean 'zip'"),
        ({"zip": "classes"}, "cannot be of the kind 'classes'"),
        ({"id": "number"}, "'id' holds no numbers"),
    ):
        with pytest.raises(SfumatoError, match=words):
            sf.data.open(table, columns=columns)
    with pytest.raises(SfumatoError, match="no table of columns"):
        sf.data.open(torch.zeros(20, 3), columns={"a": "number"})
    with pytest.raises(SfumatoError, match="labels are a column of it"):
        sf.data.open(table, labels=[0] * 500)


def test_matrices_and_labelled_numbers_stay_vectors(tmp_path):
    floats = {"a": RNG.normal(size=60), "b": RNG.normal(size=60)}
    for more, kind in (
        ({}, "array"), ({"label": ["x", "y"] * 30, "c": range(60)}, "array"),
        ({"c": RNG.integers(0, 50, 60)}, "table"), ({"label": ["x", "y"] * 30, "when": ["p", "q"] * 30}, "table"),
    ):  # fmt: skip
        parquet.write_table(pa.table({**floats, **more}), tmp_path / "x.parquet")
        assert sf.data.open(tmp_path / "x.parquet").kind == kind, more.keys()
    parquet.write_table(pa.table(floats), tmp_path / "x.parquet")
    assert sf.data.open(tmp_path / "x.parquet", columns={"a": "number"}).kind == "table"
    assert sf.data.open(pa.table(floats)).kind == "table"


def test_decimals_are_those_of_the_data_to_the_last_bit():
    """0.1 * 3 is 0.30000000000000004, which a classifier finds at once."""
    values = np.round(RNG.uniform(0, 1000, 30000), 1)
    source = sf.data.open(pa.table({"x": values}))
    field = source.table.fields[0]
    drawn = field.decode(RNG.normal(size=50000), np.empty((50000, 0), np.int64)).values
    known = np.arange(0, 10001) / 10
    assert np.isin(drawn, known).all() and 3 * 0.1 not in known and 0.3 in known
    assert drawn.min() >= values.min() and drawn.max() <= values.max()
    assert stats.ks_2samp(drawn, values).statistic < 0.02


def test_a_frame_of_pandas_keeps_its_dtypes():
    pd = pytest.importorskip("pandas")
    n = 300
    frame = pd.DataFrame({
        "i": pd.array([None if i % 7 == 0 else i * i for i in range(n)], dtype="Int64"),
        "b": pd.array([None if i % 5 == 0 else i % 2 == 0 for i in range(n)], dtype="boolean"),
        "c": pd.Categorical(RNG.choice(["lo", "hi"], n), ["lo", "mid", "hi"], ordered=True),
        "d": pd.date_range("2020-01-01", periods=n, freq="D")[RNG.permutation(n)],
        "o": pd.Series([None if i % 3 == 0 else "ab"[i % 2] for i in range(n)], dtype=object),
        "s": pd.Series(["ab"[i % 2] for i in range(n)], dtype="string"),
        "f": RNG.normal(size=n).round(2).astype(np.float32), "n": RNG.integers(0, 200, n).astype(np.int16),
    })  # fmt: skip
    source = sf.data.open(frame)
    made = frames.frame(source.table, source.x)
    assert list(made.columns) == list(frame.columns) and (made.dtypes == frame.dtypes).all()
    for name in frame.columns:
        pd.testing.assert_series_equal(made[name], frame[name])


def test_views_of_strings_are_strings(tmp_path):
    """In which polars keeps texts and categories, in memory and in the files that it writes."""
    texts = ["ab"[i % 2] for i in range(60)]
    views, levels = pa.array(texts, pa.string_view()), pa.array(["a", "b"], pa.string_view())
    table = pa.table({"o": views, "c": pa.DictionaryArray.from_arrays(pa.array([0, 1] * 30, pa.uint32()), levels)})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as written:
        written.write_table(table)
    for data in (table, tmp_path / "x.arrow"):
        source = sf.data.open(data)
        made = frames.arrow(source.table, source.x)
        assert made["o"].to_pylist() == made["c"].to_pylist() == texts
        assert str(made.schema.field("o").type) == "string" and pa.types.is_dictionary(made.schema.field("c").type)


def test_a_frame_of_polars_is_read_with_its_texts_and_categories():
    """Which polars keeps as views of strings. Empty cells, dates, zones and narrow types come back as they were."""
    pl = pytest.importorskip("polars")
    n, days = 300, RNG.permutation(300)
    frame = pl.DataFrame({
        "i": pl.Series([None if i % 7 == 0 else i * i for i in range(n)], dtype=pl.Int64),
        "b": pl.Series([None if i % 5 == 0 else i % 2 == 0 for i in range(n)]),
        "c": pl.Series(RNG.choice(["lo", "hi"], n).tolist(), dtype=pl.Enum(["lo", "mid", "hi"])),
        "k": pl.Series(RNG.choice(["x", "y"], n).tolist(), dtype=pl.Categorical),
        "o": [None if i % 3 == 0 else "ab"[i % 2] for i in range(n)],
        "d": [datetime.date(2020, 1, 1) + datetime.timedelta(int(i)) for i in days],
        "t": pl.Series([datetime.datetime(2020, 1, 1, int(i) % 24) for i in days]).dt.replace_time_zone("UTC"),
        "f": pl.Series(RNG.normal(size=n).round(2), dtype=pl.Float32), "u": pl.Series(days % 200, dtype=pl.UInt8),
    })  # fmt: skip
    source = sf.data.open(frame)
    assert [field.name for field in source.table.fields] == frame.columns
    assert source.table.field("c").levels == ("lo", "mid", "hi") and source.table.field("c").ordered
    for table in (source.table, TableSchema.from_dict(json.loads(json.dumps(source.table.to_dict())))):
        made = frames.frame(table, source.x)
        assert made.schema == frame.schema and made.equals(frame)


@pytest.mark.parametrize("kind", ["arrow", "pandas", "polars"])
def test_lists_of_numbers_in_a_frame_are_the_samples_as_in_a_file(kind, tmp_path):
    """Of several lengths sequences, of one length vectors; other columns are conditions."""
    lengths, labels = RNG.integers(2, 9, 40), ["a", "b"] * 20
    for lists, shape, layout in (
        ([RNG.normal(size=k) for k in lengths], (1, 8), "L"),
        ([RNG.normal(size=(k, 2)).tolist() for k in lengths], (2, 8), "LC"),
        (RNG.normal(size=(40, 5)).tolist(), (5,), ""),
    ):
        table = pa.table({"steps": lists, "label": labels, "mass": RNG.normal(size=40)})
        parquet.write_table(table, tmp_path / "x.parquet")
        frame = table
        if kind == "pandas":
            frame = pytest.importorskip("pandas").DataFrame({n: table[n].to_pylist() for n in table.column_names})
        if kind == "polars":
            frame = pytest.importorskip("polars").from_arrow(table)
        source, filed = sf.data.open(frame), sf.data.open(tmp_path / "x.parquet")
        assert source.table is None and source.shape == shape and source.layout == layout
        assert torch.equal(source.x.nan_to_num(), filed.x.nan_to_num())
        assert list(source.conditions) == list(filed.conditions) == ["label", "mass"]
        assert list(sf.data.open(frame, conditions={"mass": "ignore"}).conditions) == ["label"]
        assert sf.data.open(frame, columns={"label": "category"}).table is not None, "rows, as asked"


def test_a_column_of_splits_chooses_the_rows_of_a_table(tmp_path):
    own = {
        "cut": RNG.choice(["a", "b"], 90).tolist(),
        "x": RNG.normal(size=90),
        "split": ["train", "train", "test"] * 30,
    }
    parquet.write_table(pa.table(own), tmp_path / "x.parquet")
    for split, count in ((None, 60), ("test", 30)):
        source = sf.data.open(tmp_path / "x.parquet", split=split)
        assert len(source) == count and [field.name for field in source.table.fields] == ["cut", "x"]


def test_columns_of_nothing_and_tables_of_one_row_are_named():
    table = pa.table({"never": pa.nulls(50), "same": [1.5] * 50, "word": ["a"] * 50})
    source = sf.data.open(table)
    assert source.table.describe()[0] == "never: always empty"
    assert any("All rows are equal" in note for note in source.notes)
    other = sf.data.open(table.append_column("some", pa.array([1.0, None] * 25)))
    assert not any("All rows are equal" in note for note in other.notes)
