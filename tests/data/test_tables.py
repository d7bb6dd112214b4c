"""Tables: columns of pictures, of numbers, of lists; labels; what cannot be learned from; the order in blocks."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
import sfumato.data as data
from sfumato import noise
from sfumato.data import rows
from sfumato.data.table_columns import Numbers
from sfumato.errors import SfumatoError
from sfumato.training.batches import Batches
from sfumato.training.console import Silent

pa = pytest.importorskip("pyarrow")
csv, feather = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (20, 8, 9, 3), dtype=np.uint8)
NUMBERS = RNG.normal(size=(60, 3)).astype(np.float32)


def png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def pictures(labels=True):
    """As `datasets` stores them: {"bytes", "path"}, labels by number, the names of the classes beside the schema."""
    cells = [{"bytes": png(pixels), "path": f"{i}.png"} for i, pixels in enumerate(PIXELS)]
    table = pa.table({"image": cells, "label": [i % 3 for i in range(20)], "caption": ["words"] * 20})
    feature = {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    about = {"huggingface": json.dumps({"info": {"features": feature}})}
    return table.replace_schema_metadata(about) if labels else table


def numbers(**more):
    return pa.table({"a": NUMBERS[:, 0], "b": NUMBERS[:, 1], "c": NUMBERS[:, 2], **more})


def write(path, table, group=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


def saved(folder, table):
    """As `datasets.Dataset.save_to_disk` leaves it."""
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=6)
    return folder


@pytest.mark.parametrize("form", ["parquet", "arrow", "shards"])
def test_pictures_with_classes(tmp_path, form):
    if form == "arrow":
        source = data.open(saved(tmp_path / "set", pictures()))
    else:
        for i, part in enumerate([pictures()] if form == "parquet" else [pictures()[:9], pictures()[9:]]):
            write(tmp_path / "set" / f"train-{i:05d}.parquet", part)
        source = data.open(tmp_path / "set")
    assert torch.equal(source.x, torch.from_numpy(PIXELS).movedim(-1, 1)) and source.kind == "image"
    assert source.classes == ["cat", "dog", "owl"] and source.labels.tolist() == [i % 3 for i in range(20)]
    assert any("pictures from 'image', labels from 'label' (--key names another)." in note for note in source.notes)
    assert any("Not used as conditions: caption (its value is always words)." in note for note in source.notes)


def test_broken_and_empty_cells_are_skipped(tmp_path):
    cells = [png(pixels) for pixels in PIXELS]
    cells[4], cells[11] = b"junk", None
    source = data.open(write(tmp_path / "x.parquet", pa.table({"jpg": cells, "cls": list("abcde") * 4})))
    assert len(source) == 18 and source.labels.tolist() == [i % 5 for i in range(20) if i not in (4, 11)]
    assert dict(source.skipped) == {
        "4": "it is not an image, or of a kind that cannot be read", "11": "the cell is empty"
    }  # fmt: skip


def test_columns_of_numbers_are_vectors(tmp_path):
    source = data.open(write(tmp_path / "x.parquet", numbers(label=["x", "y"] * 30)))
    assert torch.equal(source.x, torch.from_numpy(NUMBERS)) and source.x.dtype == torch.float32
    assert source.classes == ["x", "y"] and source.shape == (3,)
    decided = "numbers from a, b, c, labels from 'label' (--key names another, --condition NAME:scalar makes one a"
    assert any(decided in note for note in source.notes)


def test_feather_and_csv_are_tables_too(tmp_path):
    table = numbers(label=["x", "y"] * 30)
    feather.write_feather(table, tmp_path / "x.feather")
    csv.write_csv(table, tmp_path / "x.csv")
    for name, exact in (("x.feather", True), ("x.csv", False)):
        source = data.open(tmp_path / name)
        assert source.x.dtype == (torch.float32 if exact else torch.float64) and source.classes == ["x", "y"], name
        assert torch.equal(source.x.float(), torch.from_numpy(NUMBERS)), name
    (tmp_path / "torn.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(SfumatoError, match="torn.csv cannot be read as a table"):
        data.open(tmp_path / "torn.csv")


@pytest.mark.parametrize("fixed", [True, False])
def test_a_column_of_lists_is_the_samples(tmp_path, fixed):
    values = RNG.normal(size=(30, 4, 5))
    inner = [[row.tolist() for row in sample] for sample in values]
    kind = pa.list_(pa.list_(pa.float64(), 5 if fixed else -1), 4 if fixed else -1)
    source = data.open(write(tmp_path / "x.parquet", pa.table({"id": range(30), "x": pa.array(inner, kind)})))
    assert torch.equal(source.x, torch.from_numpy(values))


def test_a_column_of_numbers_is_a_condition_where_its_kind_is_said(tmp_path):
    """It leaves the samples, may have empty cells, and is read so again by the spec of a model of it."""
    age = [None if i % 10 == 0 else 20.0 + i for i in range(60)]
    path = write(tmp_path / "x.parquet", numbers(age=age, target=[i % 7 for i in range(60)]))
    source = data.open(path, conditions={"age": "scalar", "target": "scalar"})
    assert torch.equal(source.x, torch.from_numpy(NUMBERS))
    assert {name: found.kind for name, found in source.conditions.items()} == {"age": "scalar", "target": "scalar"}
    assert source.conditions["age"].present.sum() == 54
    again = data.open(path, conditions=data.DataSpec.fit(source))
    assert torch.equal(again.x, source.x) and set(again.conditions) == {"age", "target"}
    assert set(data.open(path, conditions={"b": "scalar", "age": "scalar"}).conditions) == {"label", "b", "age"}


def test_a_number_of_the_samples_cannot_be_ignored(tmp_path):
    path = write(tmp_path / "x.parquet", numbers(note=[f"words {i}" for i in range(60)]))
    assert not data.open(path, conditions={"note": "ignore"}).conditions
    with pytest.raises(SfumatoError, match="'b' is one of the numbers of each sample and cannot be ignored: remove"):
        data.open(path, conditions={"b": "ignore"})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            lambda: pa.table({"when": [["a"], ["b"]], "where": ["c", "d"]}),
            r"no column to learn from.*when \(list<.*where \(string\)",
        ),
        (
            lambda: pa.table({"x": [[[1.0, 2.0]], [[3.0], [4.0]]]}),
            "'x' has entries of several shapes, .1, 2. and",
        ),
        (lambda: pa.table({"a": [1.0, None, 2.0]}), "1 cell of 'a' is empty from row 0 on"),
        (lambda: pa.table({"a": [1.0, float("inf"), 2.0]}), "1 value that is infinite"),
        (lambda: pa.table({"a": pa.array([], pa.float32())}), "its table has no rows"),
        (lambda: pa.table({"image": [b"junk", b"more"]}), r"no column to learn from.*image \(binary\)"),
    ],
)
def test_what_cannot_be_learned_from_is_one_sentence(tmp_path, table, words):
    with pytest.raises(SfumatoError, match=words) as caught:
        data.open(write(tmp_path / "x.parquet", table()))
    assert "\n" not in str(caught.value)


def test_a_first_line_of_numbers_is_a_sample_without_names_unless_they_rise(tmp_path):
    rows = "".join(f"{a:.3f},{b:.3f},{c:.3f}\n" for a, b, c in NUMBERS[:, [0, 1, 0]])
    for name, first in (("plain", ""), ("pixels", "5,0,0\n")):
        (tmp_path / f"{name}.csv").write_text(first + rows)
        with pytest.raises(SfumatoError, match=f"{name}.csv begins with numbers .* where the names of its columns"):
            data.open(tmp_path / f"{name}.csv")
    for first in ("0,1,2", "400.5,401,450"):  # those of pandas, and wavelengths
        (tmp_path / "named.csv").write_text(f"{first}\n{rows}")
        assert data.open(tmp_path / "named.csv").x.shape == (len(NUMBERS), 3)


def test_files_that_are_no_tables_are_one_sentence(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nonsense")
    with pytest.raises(SfumatoError, match="cannot be read as a table"):
        data.open(tmp_path / "x.parquet")
    (tmp_path / "twins.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(SfumatoError, match="twins.csv has several columns named 'a'"):
        data.open(tmp_path / "twins.csv")
    (tmp_path / "latin.csv").write_bytes("a,é\n1.5,2.5\n".encode("latin-1"))
    with pytest.raises(SfumatoError, match="latin.csv cannot be read as a table: .*utf-8"):
        data.open(tmp_path / "latin.csv")
    write(tmp_path / "two" / "a.parquet", numbers())
    write(tmp_path / "two" / "b.parquet", numbers(d=NUMBERS[:, 0]))
    with pytest.raises(SfumatoError, match="b.parquet has other columns than .*a.parquet"):
        data.open(tmp_path / "two")
    (tmp_path / "both" / "train").mkdir(parents=True)
    (tmp_path / "both" / "train" / "state.json").write_text("{}")
    (tmp_path / "both" / "dataset_dict.json").write_text("{}")
    with pytest.raises(SfumatoError, match="both has no split 'test', but train"):
        data.open(tmp_path / "both", split="test")
    for place in ("both", "both/train"):
        with pytest.raises(SfumatoError, match="state.json is damaged"):
            data.open(tmp_path / place)


def test_splits_of_a_data_set_saved_by_datasets_and_of_files(tmp_path):
    """As `datasets` saves them, and as the hub keeps them: data/train-00000-of-00002.parquet."""
    for name, start in (("train", 0), ("test", 40)):
        table = numbers().slice(start, 20)
        place = tmp_path / "saved" / name
        place.mkdir(parents=True)
        with pa.OSFile(str(place / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        (place / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        write(tmp_path / "hub" / "data" / f"{name}-00000-of-00001.parquet", table)
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    (tmp_path / "hub" / "README.md").write_text("words")
    whole = data.open(write(tmp_path / "whole.parquet", numbers())).x
    for place in ("saved", "hub"):
        for split, start in ((None, 0), ("train", 0), ("test", 40), ("testing", 40)):
            assert torch.equal(data.open(tmp_path / place, split=split).x, whole[start : start + 20]), (place, split)
        with pytest.raises(SfumatoError, match="no split 'val', but test .*, train .*: choose one with --split"):
            data.open(tmp_path / place, split="val")
    assert ("README.md", "not one of the tables") in data.open(tmp_path / "hub").skipped
    with pytest.raises(SfumatoError, match="whole.parquet has no splits.*leave --split out"):
        data.open(tmp_path / "whole.parquet", split="test")


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_that_pandas_writes_are_no_samples(tmp_path, name):
    lines = [f"{i},{a},{b}" for i, (a, b) in enumerate(NUMBERS[:, :2].tolist())]
    (tmp_path / "x.csv").write_text("\n".join([f"{name},a,b", *lines]))
    source = data.open(tmp_path / "x.csv")
    assert source.shape == (2,) and not source.conditions
    assert any(f"Not used as conditions: {name} (it counts the samples)" in note for note in source.notes)


def test_a_column_can_be_named_as_the_samples(tmp_path):
    path = write(tmp_path / "x.parquet", numbers(a=[[float(i), 2.0] for i in range(len(NUMBERS))]))
    assert data.open(path).shape == (2,)
    source = data.open(path, key="b")
    assert source.shape == (1,) and "a" in source.conditions
    with pytest.raises(SfumatoError, match="no column named 'zz' to learn from"):
        data.open(path, key="zz")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(SfumatoError, match=r"not installed: pip install 'sfumato\[parquet\]'"):
        data.open(tmp_path / "x.parquet")


def test_a_table_that_memory_cannot_hold_trains_to_the_same_bits(tmp_path, monkeypatch):
    how = {"steps": 6, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "console": Silent()}
    path = write(tmp_path / "x.parquet", numbers())
    usual = sf.train(path, out=str(tmp_path / "usual"), **how)
    monkeypatch.setattr("sfumato.machine.available", lambda: 100.0)
    source = data.open(path)
    assert isinstance(source.x, Numbers) and torch.equal(source.x[:], torch.from_numpy(NUMBERS))
    other = sf.train(path, out=str(tmp_path / "other"), workers=2, **how)
    weights = [run.denoiser.net.state_dict().values() for run in (usual, other)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_large_table_is_read_a_few_row_groups_at_a_time(tmp_path, monkeypatch):
    """The same order in memory and by row group: it depends on the table, not on the machine."""
    monkeypatch.setattr(rows, "BLOCKS_FROM", 0)
    path = write(tmp_path / "x.parquet", numbers(), group=4)
    found = []
    for room in (1e9, 100.0):
        monkeypatch.setattr("sfumato.machine.available", lambda room=room: room)
        source = data.open(path)
        training = rows.part(source.x, source.split(0.2)[0])
        batches = Batches(training, None, data.DataSpec.fit(source), 0, 0.0, torch.device("cpu"), workers=2)
        found.append(torch.cat([batches.take(start, 8)[0] for start in range(0, 160, 8)]))
        blocks = training.blocks[batches.order(1)]
        batches.close()
        assert all(len(blocks[i : i + 8].unique()) <= 2 * noise.WINDOW for i in range(0, len(blocks), 8))
        assert blocks.unique().numel() > 2 * noise.WINDOW
    assert torch.equal(*found)


def test_the_order_in_blocks_is_an_order_and_changes():
    blocks = torch.arange(100) // 9
    first = noise.permutation(3, 0, 100, blocks)
    assert torch.equal(first.sort().values, torch.arange(100))
    assert torch.equal(first, noise.permutation(3, 0, 100, blocks))
    for other in (noise.permutation(3, 1, 100, blocks), noise.permutation(4, 0, 100, blocks)):
        assert int((first == other).sum()) < 20
    window = blocks[first[: 9 * noise.WINDOW]]
    assert len(window.unique()) <= noise.WINDOW + 1 and not torch.equal(window, window.sort().values)


def test_what_datasets_itself_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog", "owl"])
    about = datasets.Features({"image": datasets.Image(), "label": names, "caption": datasets.Value("string")})
    # a fingerprint is given, so that nothing has to be pickled to make one
    made = datasets.Dataset(
        datasets.table.InMemoryTable(pictures(labels=False)), datasets.DatasetInfo(features=about), fingerprint="0" * 16
    )
    made.save_to_disk(tmp_path / "set")
    made.to_parquet(tmp_path / "x.parquet")
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "splits")
    assert made[3]["image"].size == (9, 8)
    for place in ("set", "x.parquet", "splits/train"):
        source = data.open(tmp_path / place)
        assert torch.equal(source.x, torch.from_numpy(PIXELS).movedim(-1, 1)) and source.classes == [
            "cat",
            "dog",
            "owl",
        ]
    assert torch.equal(data.open(tmp_path / "splits").x, source.x)


def test_columns_beside_the_samples_are_conditions(tmp_path):
    """Beside pictures and beside a column of lists: each type of a column, with cells that are empty."""
    rows = RNG.normal(size=(60, 4))
    more = {
        "mass": pa.array([None, *RNG.normal(size=59)]), "kind": [i % 3 for i in range(60)],
        "colour": [None, *("rg"[i % 2] for i in range(59))], "tags": [["a", "b"][: i % 3] for i in range(60)],
        "embedding": [None, *rows[1:].tolist()], "caption": [f"words {i}" for i in range(60)],
        "note": [f"words {i}" for i in range(60)],
        "flag": [i % 2 == 0 for i in range(60)], "ragged": [[1.0] * (i % 2 + 1) for i in range(60)],
        "when": pa.array(range(60), pa.timestamp("ms")), "n": list(range(60)),
        "label": [None, *("xyz"[i % 3] for i in range(59))],
    }  # fmt: skip
    source = data.open(write(tmp_path / "x.parquet", pa.table({"x": rows.tolist(), **more})))
    assert torch.equal(source.x, torch.from_numpy(rows)) and source.labels[:3].tolist() == [-1, 0, 1]
    kinds = {name: found.kind for name, found in source.conditions.items()}
    assert kinds == {
        "label": "label", "mass": "scalar", "kind": "label", "colour": "label", "tags": "multilabel",
        "embedding": "vector", "flag": "label", "caption": "text",
    }  # fmt: skip
    for name in ("label", "mass", "colour", "embedding"):
        assert source.conditions[name].present.tolist() == [False] + [True] * 59, name
    assert np.array_equal(source.conditions["embedding"].values[1:], rows[1:])
    note = " ".join(note for note in source.notes if note.startswith("Not used"))
    for name, why in {
        "note": "text of many kinds: --condition note:text reads it", "when": "timestamp[ms] is not read",
        "n": "it counts the samples", "ragged": "have lengths from 1 to 2",
    }.items():  # fmt: skip
        assert f"{name} (" in note and why in note, (name, note)
    said = data.open(tmp_path / "x.parquet", conditions={"caption": "label", "mass": "ignore"})
    assert said.conditions["caption"].kind == "label" and "mass" not in said.conditions
    table = pictures().append_column("mass", pa.array(range(20), pa.float64()))
    table = table.set_column(0, "image", pa.array([None, *table["image"].to_pylist()[1:]]))
    beside = data.open(write(tmp_path / "p.parquet", table))
    assert beside.conditions["mass"].values.tolist() == [float(i) for i in range(1, 20)]
    assert beside.labels.tolist() == [i % 3 for i in range(1, 20)] and beside.classes == ["cat", "dog", "owl"]


def test_metadata_as_a_table_beside_pictures(tmp_path):
    for i in range(4):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{i}.png").write_bytes(png(PIXELS[i]))
    write(tmp_path / "set" / "metadata.parquet", pa.table({"file_name": ["3.png", "0.png"], "mass": [2.5, 1.0]}))
    found = data.open(tmp_path / "set").conditions["mass"]
    assert found.present.tolist() == [True, False, False, True] and found.given.tolist() == [1.0, 2.5]


SPLITS = ["train"] * 30 + ["valid"] * 10 + ["test"] * 20


@pytest.mark.parametrize("name", ["split", "Set", "fold"])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_column_that_names_the_split_chooses_rows(tmp_path, name, suffix):
    table = numbers(**{name: SPLITS})
    path = write(tmp_path / f"t.{suffix}", table) if suffix == "parquet" else tmp_path / "t.csv"
    if suffix == "csv":
        csv.write_csv(table, path)
    for asked, part in ((None, slice(0, 30)), ("val", slice(30, 40)), ("test", slice(40, 60))):
        source = data.open(path, split=asked)
        assert torch.allclose(source.x.float(), torch.from_numpy(NUMBERS[part])) and not source.conditions
        read = SPLITS[part][0].replace("valid", "val")
        note = f"Splits by the column {name!r}: test (20 rows), train (30 rows), val (10 rows). {read!r} is read; the "
        assert any(each.startswith(note) and "--split" in each for each in source.notes)
    with pytest.raises(SfumatoError, match="has no split 'extra', but test"):
        data.open(path, split="extra")


def test_splits_of_rows_keep_pictures_labels_and_order(tmp_path, monkeypatch):
    """In groups of seven, of which some have no row of the split; the cache tells splits apart."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sfumato.data.images.WORTH_COUNT", 1)
    splits = ["train"] * 8 + ["test"] * 8 + ["train"] * 4
    path = write(tmp_path / "p.parquet", pictures().append_column("split", [splits]))
    for asked in ("train", "test", "train"):
        kept = [i for i, split in enumerate(splits) if split == asked]
        source = data.open(path, split=asked)
        assert np.array_equal(source.x.numpy(), PIXELS[kept].transpose(0, 3, 1, 2))
        assert source.labels.tolist() == [i % 3 for i in kept] and list(source.conditions) == ["label"]


def test_what_is_no_column_of_splits_stays_a_condition(tmp_path):
    other = write(tmp_path / "other.parquet", numbers(set=["train", "north"] * 30))
    assert list(data.open(other, conditions={"set": "label"}).conditions) == ["set"]
    with pytest.raises(SfumatoError, match="has no splits"):
        data.open(other, split="test")
    asked = data.open(write(tmp_path / "t.parquet", numbers(split=SPLITS)), conditions={"split": "label"})
    assert len(asked) == 60 and list(asked.conditions) == ["split"]


def test_a_split_of_texts(tmp_path):
    path = write(tmp_path / "t.parquet", pa.table({"text": ["to be or not to be. " * 9] * 60, "split": SPLITS}))
    assert data.open(path, split="test").notes[0].startswith("20 texts of ")
