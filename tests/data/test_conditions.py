"""Conditions beside the samples: where they come from, what they are taken for, what is missing or of no use."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.data as data
from sfumato.data.column import Unread, cells, column
from sfumato.errors import SfumatoError

N = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2))
PICTURES = RNG.integers(0, 255, (N, 3, 8, 8), dtype=np.uint8)
T = np.linspace(280.0, 320.0, N)
WORDS = [("red", "green", "blue")[i % 3] for i in range(N)]
TAGS = [["sea", "sky"][: i % 3] for i in range(N)]


def kinds(source):
    return {name: found.kind for name, found in source.conditions.items()}


def refused(match, *args, **kwargs):
    with pytest.raises(SfumatoError, match=match) as caught:
        data.open(*args, **kwargs)
    assert "\n" not in str(caught.value), str(caught.value)


def unread(source):
    return next(note for note in source.notes if note.startswith("Not used as conditions"))


def folder(root, names, **rows):
    """Grey pictures by name, and a metadata file by its ending."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / name)
    for ending, text in rows.items():
        (root / f"metadata.{ending}").write_text(text)
    return root


def test_a_dict_declares_its_conditions_by_their_values():
    """Each kind by what its values look like, in memory, in lists, as tensors and in a file."""
    mask = RNG.normal(size=(N, 1, 4, 4))
    given = {
        "temperature": (T, "scalar"),
        "listed": (T.tolist(), "scalar"),
        "half": (torch.from_numpy(T).to(torch.bfloat16), "scalar"),
        "column": (T[:, None], "scalar"),
        "count": (np.arange(N) ** 2, "scalar"),  # whole numbers, all different
        "kind": (np.arange(N) % 4, "label"),
        "colour": (WORDS, "label"),
        "bytes": (np.array(WORDS, "S"), "label"),
        "smiling": (np.arange(N) % 2 == 0, "label"),
        "embedding": (RNG.normal(size=(N, 5)), "vector"),
        "pair": ([[1, i] for i in range(N)], "vector"),
        "mask": (mask, "field"),
        "grey": (mask[:, 0], "field"),
        "picture": (RNG.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8), "field"),
        "tags": (TAGS, "multilabel"),
        "bits": (RNG.normal(size=(N, 3)) > 0, "multilabel"),
    }
    source = data.open({"x": PICTURES, **{name: values for name, (values, _) in given.items()}})
    wanted = {name: kind for name, (_, kind) in given.items()}
    assert kinds(source) == wanted and source.labels is None and source.classes == []
    found = source.conditions
    for name in ("temperature", "listed", "column"):
        assert np.array_equal(found[name].values, T) and found[name].present.all(), name
    assert found["colour"].names == ("blue", "green", "red") and found["smiling"].names == ("False", "True")
    assert found["colour"].spelt.tolist() == WORDS == found["bytes"].spelt.tolist()
    shapes = {name: found[name].values.shape[1:] for name in ("embedding", "pair", "mask", "grey", "picture")}
    assert shapes == {"embedding": (5,), "pair": (2,), "mask": (1, 4, 4), "grey": (1, 4, 4), "picture": (3, 8, 8)}
    assert [list(tags) for tags in found["tags"].values] == TAGS
    note = next(note for note in source.notes if note.startswith("Conditions: "))
    assert "temperature (scalar), " in note and "colour (label, 3 classes)" in note
    assert "mask (field, 1 x 4 x 4)" in note
    assert data.open(source) == source


def test_a_kind_can_be_said():
    plain = {"x": X, "kind": np.arange(N) % 4, "year": 1990 + np.arange(N) % 9, "words": ["a, b", "b"] * (N // 2)}
    plain |= {"digits": [str(i % 3) for i in range(N)], "rows": PICTURES}
    said = {"kind": "scalar", "year": "label", "words": "multilabel", "digits": "scalar", "rows": "vector"}
    source = data.open(plain, conditions=said)
    assert kinds(source) == said and source.conditions["year"].names == tuple(str(1990 + i) for i in range(9))
    assert source.conditions["rows"].values.shape == (N, 3 * 64)
    assert source.conditions["digits"].values.tolist() == [i % 3 for i in range(N)]
    left = data.open(source, conditions={"kind": "label", "rows": "ignore"})
    assert kinds(left) == {**{name: kind for name, kind in said.items() if name != "rows"}, "kind": "label"}
    assert not any("rows" in note for note in left.notes if note.startswith("Not used"))
    refused(r"no condition 'knd' in the data: did you mean 'kind'", plain, conditions={"knd": "label"})
    refused(r"'kind' cannot be of the kind 'number'.*label, multilabel", plain, conditions={"kind": "number"})
    refused(r"no condition 'y' in the data: it has none", X, conditions={"y": "label"})
    wrong = {"scalar": "flat", "label": "temperature", "field": "flat", "multilabel": "temperature"}
    for kind, name in wrong.items():
        refused(f"the condition '{name}' cannot be a {kind}: ", {"x": X, "temperature": T, "flat": X},
                conditions={name: kind})  # fmt: skip
    refused("cannot be a scalar: it holds no numbers, but values such as 'red'", {"x": X, "c": WORDS},
            conditions={"c": "scalar"})  # fmt: skip


def test_missing_values_are_absent_and_counted():
    holes = [None, float("nan"), *T[2:]]
    masked = np.ma.MaskedArray(T, mask=np.arange(N) < 2)
    matrix = RNG.normal(size=(N, 3))
    matrix[0, 1] = matrix[1] = np.nan
    given = {
        "listed": holes, "floats": np.array([np.nan, np.nan, *T[2:]]), "masked": masked, "vector": matrix,
        "words": [None, "", *WORDS[2:]], "whole": [None, None, *(i % 3 for i in range(2, N))],
        "tags": [None, None, *TAGS[2:]], "rows": [None, None, *RNG.normal(size=(N - 2, 2)).tolist()],
    }  # fmt: skip
    source = data.open({"x": X, **given})
    assert set(kinds(source)) == set(given)
    for name, found in source.conditions.items():
        assert found.present.tolist() == [False] * 2 + [True] * (N - 2), name
    assert kinds(source)["whole"] == kinds(source)["words"] == "label" and source.conditions["words"].missing == 2
    assert source.conditions["words"].spelt.tolist() == [None, None, *WORDS[2:]]
    assert np.isnan(source.conditions["masked"].spelt[:2].astype(float)).all()
    assert any("Missing values: 2 of listed, " in note for note in source.notes)
    labelled = data.open({"x": X, "label": [None, "", *WORDS[2:]]})
    assert labelled.labels[:4].tolist() == [-1, -1, 0, 2] and labelled.classes == ["blue", "green", "red"]
    assert data.inspect(labelled)["classes"] == {"blue": 13, "green": 12, "red": 13}


def test_what_says_nothing_or_cannot_be_read_is_named():
    given = {
        "constant": np.full(N, 3.0), "nothing": [None] * N, "id": np.arange(N) + 7, "scale": 3.0,
        "name": [f"words {i}" for i in range(N)], "ragged": [[1.0] * (1 + i % 2) for i in range(N)],
        "same": ["a"] * N, "when": np.arange(N).astype("datetime64[D]"), "things": [{"a": 1}] * N, "none": None,
        "volume": RNG.normal(size=(N, 2, 3, 4, 5)), "present": np.arange(N) % 2,
    }  # fmt: skip
    source = data.open({"x": X, **given})
    assert source.conditions == {}
    notes = [note for note in source.notes if note.startswith("Not used as conditions")]
    for name, why in {
        "constant": "its value is always 3.0", "nothing": "all its values are missing", "id": "it counts the samples",
        "scale": "it is no array", "same": "its value is always a",
        "name": "text, 40 different: --condition name:text reads it", "ragged": "its lists have different lengths",
        "when": "values are not read", "volume": "the samples have no spatial axes",
        "present": "a condition cannot have this name",
    }.items():  # fmt: skip
        assert any(f"{name} (" in note and why in note for note in notes), (name, notes)
    many = data.open({"x": np.zeros((10_000, 2)), "name": [f"words {i}" for i in range(10_000)]})
    assert not many.conditions and "text, 10,000 different" in unread(many)
    named = data.open({"x": np.zeros((10_000, 2)), "class": [f"words {i}" for i in range(10_000)]})
    assert len(named.conditions["class"].names) == 10_000 and any("are the labels classes" in n for n in named.notes)
    refused("the condition 't': the value of sample 3 is infinite", {"x": X, "t": [*T[:3], np.inf, *T[4:]]})
    short = "the condition 'short' has 5 entries for 40 samples: give one per sample, or leave it out"
    for values in (T[:5], list(T[:5]), torch.from_numpy(T[:5])):
        refused(short, {"x": X, "temperature": T, "short": values})


def test_targets_of_an_npz_are_conditions(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=T, other=np.zeros(3))
    source = data.open(tmp_path / "a.npz")
    assert kinds(source) == {"y": "scalar"} and source.labels is None and "other (it has 3 entries" in unread(source)
    np.savez(tmp_path / "b.npz", x=X, y=np.arange(N) % 3, labels=np.arange(N) % 2, temperature=T, mass=X)
    source = data.open(tmp_path / "b.npz")
    assert kinds(source) == {"label": "label", "labels": "label", "temperature": "scalar", "mass": "vector"}
    assert source.labels.tolist() == [i % 3 for i in range(N)] and source.classes == ["0", "1", "2"]
    replaced = data.open(tmp_path / "b.npz", labels=WORDS)
    assert replaced.classes == ["blue", "green", "red"] and kinds(replaced)["temperature"] == "scalar"
    np.savez(tmp_path / "c.npz", x=X, y=np.arange(3))
    refused("3 labels for 40 samples", tmp_path / "c.npz")
    halves = data.open({"x": X, "y": np.array([0.0, 1.0, np.nan, 1.0] * 10)})
    assert halves.labels[:4].tolist() == [0, 1, -1, 1]


def test_cells_of_text_are_numbers_where_all_are():
    for text, wanted in {
        ("1", "2", ""): ([1, 2, 0], "i"), ("1.5", "NA", "-2e3"): ([1.5, 0, -2000], "f"),
        ("007", "010", "100"): (["007", "010", "100"], "O"), ("a", "NA", "1"): (["a", "NA", "1"], "O"),
        ("0", "-1", "nan"): ([0, -1, 0], "i"), ("0.5", "00.5", "1"): ([0.5, 0.5, 1], "f"),
    }.items():  # fmt: skip
        found = cells(text)
        spelt = [value if here else 0 for value, here in zip(found.values.tolist(), found.present, strict=True)]
        assert (spelt, found.values.dtype.kind) == wanted, text
    assert not cells(("", None, " ")).present.any()
    with pytest.raises(Unread):
        column([1.0, {"a": 2}])


NAMES = ["a.png", "b.png", "sub/c.png", "sub/d.png"]
CSV = "file_name,temperature,colour\nb.png,2.5,red\na.png,,blue\n./sub/c.png,1,red\nlost.png,7,red\n"


def test_a_column_of_metadata_names_the_split(tmp_path):
    names = [f"{i:02d}.png" for i in range(20)]
    splits = ["train"] * 12 + ["valid"] * 5 + ["test"] * 3
    lines = [f"{name},{i * i},{split}" for i, (name, split) in enumerate(zip(names, splits, strict=True))]
    table = "\n".join(["file_name,age,split", *lines])
    root = folder(tmp_path / "root", names, csv=table)
    for split, first, count in ((None, 0, 12), ("val", 12, 5), ("test", 17, 3)):
        source = data.open(root, split=split)
        assert source.ids == names[first : first + count] and set(source.conditions) == {"age"}, split
        assert source.conditions["age"].values.tolist() == [i * i for i in range(first, first + count)]
        assert any("Splits by the column 'split'" in note for note in source.notes)
        assert not any("do not exist" in note for note in source.notes)
    whole = data.open(root, conditions={"split": "label"})
    assert len(whole) == 20 and whole.conditions["split"].names == ("test", "train", "valid")
    with pytest.raises(SfumatoError, match="has no split 'val', but"):
        data.open(folder(tmp_path / "two", names, csv=table.replace("valid", "test")), split="val")
    folder(tmp_path / "odd", names, csv=table.replace("valid", "sunny"))
    assert len(data.open(tmp_path / "odd")) == 20


def test_metadata_of_a_folder(tmp_path):
    rows = [{"file_name": "b.png", "temperature": 2.5, "colour": "red"}, {"file_name": "a.png", "colour": "blue"}]
    rows += [{"file_name": "sub\\c.png", "temperature": 1, "colour": "red"}]
    rows += [{"file_name": "lost.png", "temperature": 7, "colour": "red"}]
    lines = "\n".join(map(json.dumps, rows))
    made = {
        "csv": {"csv": CSV}, "semicolons": {"csv": "\ufeff" + CSV.replace(",", ";")},
        "jsonl": {"jsonl": lines + "\n\n"}, "both": {"csv": CSV, "jsonl": lines},
    }  # fmt: skip
    for name, text in made.items():
        source = data.open(folder(tmp_path / name, NAMES, **text))
        assert source.ids == NAMES and len(source) == 4, name
        found = source.conditions
        assert kinds(source) == {"temperature": "scalar", "colour": "label"}, (name, source.notes)
        assert found["temperature"].spelt.tolist()[1:3] == [2.5, 1] and found["temperature"].missing == 2, name
        assert found["colour"].spelt.tolist() == ["blue", "red", "red", None], name
        assert any("have 1 row of metadata" in note and "(lost.png)" in note for note in source.notes), source.notes
        assert any("1 of 4 pictures have no row" in note for note in source.notes), source.notes
        assert all(("json" in path) and name == "both" for path, _ in source.skipped), source.skipped


def test_metadata_within_folders_and_beside_classes(tmp_path):
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(3)]
    root = folder(tmp_path / "set", names)
    (root / "cat" / "metadata.csv").write_text("file_name,age\n0.png,1\n1.png,2.5\n2.png,4\n")
    (root / "dog" / "metadata.jsonl").write_text('{"file_name": "0.png", "age": 9, "good": true}\n')
    source = data.open(root)
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert kinds(source) == {"label": "label", "age": "scalar"} and "good (its value is always True)" in unread(source)
    assert source.conditions["age"].present.tolist() == [True] * 4 + [False] * 2
    assert source.conditions["age"].values[:4].tolist() == [1, 2.5, 4, 9]
    (root / "metadata.csv").write_text("file_name,label\ncat/0.png,old\ndog/1.png,new\n")
    named = data.open(root)
    assert named.classes == ["new", "old"] and named.labels.tolist() == [1, -1, -1, -1, 0, -1]


def test_metadata_that_cannot_be_used_is_one_sentence(tmp_path):
    for name, (ending, text, words) in {
        "key": ("csv", "name,a\na.png,1\n", "has no column 'file_name'.*it has name, a"),
        "twice": ("csv", CSV + "b.png,3,red\n", "gives two values of temperature for b.png, 2.5 and 3: keep one"),
        "long": ("csv", "file_name,a\na.png,1,2\n", "has 3 cells in row 1, and 2 columns"),
        "quote": ("csv", 'file_name,a\n"a.png,1\n', "is no table of text"),
        "same": ("csv", "file_name,a,a\n", "two columns of one name"),
        "nobody": ("csv", "file_name,a\n,1\n", "has no file_name in row 1"),
        "empty": ("csv", "", "has no column 'file_name'.*it has none"),
        "torn": ("jsonl", '{"file_name": "a.png"}\n{"file', "is no table: line 2 is not valid JSON"),
        "list": ("jsonl", "[1, 2]", "is no table: line 1"),
        "deep": ("jsonl", "[" * 100_000, "is no table: line 1"),
        "parquet": ("parquet", "nonsense", "cannot be read as a table|pyarrow"),
    }.items():
        refused(words, folder(tmp_path / name, NAMES, **{ending: text}))
    binary = folder(tmp_path / "binary", NAMES)
    (binary / "metadata.csv").write_bytes(b"\xff\xfe\x00file_name")
    refused("is no table of text", binary)
    twice = data.open(folder(tmp_path / "agreed", NAMES, csv=CSV + "b.png,2.5,red\n"))
    assert twice.conditions["temperature"].missing == 2


def test_ten_thousand_rows_are_read_at_once(tmp_path):
    rows = "\n".join(f"{i}.png,{i / 7},{'ab'[i % 2]}" for i in range(10_000))
    source = data.open(folder(tmp_path, ["5.png", "9999.png"], csv=f"file_name,t,c\n{rows}\n"))
    assert source.conditions["t"].values.tolist() == [5 / 7, 9999 / 7] and "c (its value is always b)" in unread(source)
    assert any("Pictures that do not exist have 9,998 rows of metadata.csv (0.png, 1.png, 10.png, ...)" in n
               for n in source.notes)  # fmt: skip
