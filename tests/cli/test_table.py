"""Tables from a file to a file of the same columns, by the command line."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import sfumato as sf
from sfumato.cli import table
from sfumato.data import DataSpec, frames

pa = pytest.importorskip("pyarrow")
csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

RNG = np.random.default_rng(0)
HOLES = RNG.uniform(size=300) < 0.3
TREES = pa.table({
    "tree": RNG.choice(["ash", "oak"], 300).tolist(), "height": np.round(RNG.normal(12, 3, 300), 1),
    "age": pa.array(RNG.integers(1, 200, 300), mask=HOLES),
    "seen": RNG.integers(18000, 19000, 300).astype("datetime64[D]"), "zip": RNG.choice([1010, 1020, 1030], 300),
})  # fmt: skip
SMALL = ["--net", "MLP(width=16, depth=1)", "--batch", "16", "--precision", "float32", "--steps", "4"]


@pytest.fixture
def trees(tmp_path):
    csv.write_csv(TREES, tmp_path / "trees.csv")
    return tmp_path / "trees.csv"


def test_a_file_is_shown_trained_and_sampled(call, trees, tmp_path):
    status, out, err = call("inspect", trees, "--column", "zip:number")
    assert status == 0, err
    for line in (
        "trees: 300 rows of 5 columns, taken as a table.", "  tree: category of 2 levels (ash, oak)",
        "  height: number, in steps of 0.1", "  age: number, whole, in steps of 1, may be missing",
        "  seen: number, dates, in steps of 1", "  zip: number, whole, in steps of 10",
    ):  # fmt: skip
        assert line in out.splitlines(), (line, out)
    run = tmp_path / "run"
    status, out, err = call("train", trees, "-o", run, "--column", "zip:ignore", *SMALL)
    assert status == 0, err
    assert f"sfumato sample {run} -n 1000 -o samples.csv" in out and f"sfumato memorization {run}" in out
    assert "columns:\n  zip: ignore" in (run / "config.yaml").read_text()
    status, out, err = call("info", run)
    assert "tree: category of 2 levels (ash, oak)" in out and "rows = sf.sample" in out
    names = [name for name in TREES.schema.names if name != "zip"]
    for out_file, read in (("out.csv", csv.read_csv), ("out.parquet", parquet.read_table)):
        status, out, err = call("sample", run, "-n", "40", "--given", "tree=oak", "-o", tmp_path / out_file, "--json")
        assert status == 0, err
        assert json.loads(out)["manifest"]["given"] == {"tree": "oak"}
        made = read(tmp_path / out_file)
        assert made.schema.names == names and len(made) == 40 and set(made["tree"].to_pylist()) == {"oak"}
        assert [made.schema.field(name).type for name in names] == [
            csv.read_csv(trees).schema.field(name).type for name in names
        ]
        assert 0 < made["age"].null_count < 40
    again = sf.data.open(tmp_path / "out.csv", conditions=sf.load(run).spec)
    assert len(again) == 40 and isinstance(sf.load(run).spec, DataSpec)
    status, out, err = call("resume", run, "--steps", "6")
    assert status == 0, err


def test_rows_are_written_as_they_are_drawn_and_are_those_of_one_draw(call, trees, tmp_path, monkeypatch):
    """In groups of 20 of batches of 8: more than are kept at once, and a last batch and a last group that are short."""
    run, before = tmp_path / "run", []
    assert call("train", trees, "-o", run, *SMALL)[0] == 0
    model = sf.load(run)

    def watched(*args, **how):
        before.append(sum(part.stat().st_size for part in tmp_path.glob(".rows.*")))
        return sf.sample(*args, **how)

    monkeypatch.setattr(frames, "GROUP", 20)
    monkeypatch.setattr(table, "sample", watched)
    for known in ({}, {"height": 12.5}):
        z = sf.sample(model, 100, steps=3, batch=8, seed=5, given=known, normalised=True)
        whole = frames.arrow(model.spec.table, model.spec.denormalise(model.process.table(z)))
        how = ["-n", 100, "--steps", 3, "--batch", 8, "--seed", 5, *(["--given", "height=12.5"] if known else [])]
        readers = {".csv": csv.read_csv, ".parquet": parquet.read_table, ".feather": feather.read_table}
        for suffix, read in readers.items():
            before.clear()
            assert call("sample", run, *how, "-o", tmp_path / f"rows{suffix}")[0] == 0
            assert read(tmp_path / f"rows{suffix}").equals(whole), suffix
            assert len(before) == 13 and (suffix != ".csv" or 0 < before[7] < before[12])
    assert parquet.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 5
    assert not list(tmp_path.glob(".rows.*"))


def test_cells_are_given_filled_and_scored(call, trees, tmp_path):
    run = tmp_path / "run"
    assert call("train", trees, "-o", run, *SMALL)[0] == 0
    status, out, err = call(
        "sample", run, "-n", "20", "--given", "height=12.5", "--given", "seen=2020-01-15", "--given", "age=", "-o",
        tmp_path / "known.csv",
    )  # fmt: skip
    assert status == 0, err
    known = csv.read_csv(tmp_path / "known.csv")
    assert set(known["height"].to_pylist()) == {12.5} and known["age"].null_count == 20
    assert {str(each) for each in known["seen"].to_pylist()} == {"2020-01-15"}
    status, out, err = call("impute", run, trees, "-n", "2", "-o", tmp_path / "full.csv", "--json")
    assert status == 0, err
    whole = csv.read_csv(trees)
    assert json.loads(out)["filled"] == json.loads(out)["empty"] == whole["age"].null_count > 50
    for name in ("full-1.csv", "full-2.csv"):
        filled = csv.read_csv(tmp_path / name)
        assert filled.schema == whole.schema and filled["age"].null_count == 0
        there = whole["age"].is_valid()
        assert filled.filter(there).equals(whole.filter(there)) and filled["tree"].equals(whole["tree"])
    tall = whole.set_column(1, "height", pa.array([99.0, 98.0, *whole["height"].to_pylist()[2:]]))
    csv.write_csv(tall, tmp_path / "tall.csv")
    status, out, err = call("impute", run, tmp_path / "tall.csv", "-o", tmp_path / "full.csv")
    assert status == 0 and "Values beyond those of training count as the nearest of these: 2 in 'height'." in out, err
    assert csv.read_csv(tmp_path / "full.csv")["height"].to_pylist()[:2] == [99.0, 98.0]
    status, out, err = call("likelihood", run, trees, "-n", "30", "--steps", "4", "-o", tmp_path / "p.npz")
    assert status == 0, err
    assert "nats a row (30 rows of 5 columns)" in out and "The least likely rows" in out
    with np.load(tmp_path / "p.npz") as made:
        assert made["chain"].shape == made["rest"].shape == (30, 5) and list(made["columns"]) == whole.schema.names
        assert np.allclose(made["chain"].sum(1), made["value"]) and (made["chain"] <= 1e-6).all()
    status, out, err = call("memorization", run, "-n", "40")
    assert status == 0, err
    assert "distances in the columns of a row, numbers as normal scores" in out and "features" not in out
    pytest.importorskip("sklearn")
    status, out, err = call("evaluate", run, "-n", "60", "--metric", "kolmogorov", "--metric", "rows-c2st", "--json")
    assert status == 0, err
    assert 0.5 < json.loads(out)["metrics"]["rows-c2st"]["value"] <= 1


def test_mistakes_are_one_sentence(call, trees, tmp_path, models):
    run = tmp_path / "run"
    assert call("train", trees, "-o", run, *SMALL)[0] == 0
    Path("none.csv").write_text("tree,height,age,seen,zip\n")
    Path("words.csv").write_text("tree,age\noak,old\n")
    Path("texts.csv").write_text("text\n" + "".join(f"the cat number {i}\n" for i in range(30)))
    np.save("x.npy", np.zeros(3))
    for words, said in (
        (["sample", run, "-o", "x.npz"], "end it in .csv, .tsv, .parquet, .feather."),
        (["sample", run, "-o", "folder/"], "a table is one file"),
        (["sample", run, "--given", "tree=elm", "-o", "x.csv"], "no level 'elm'"),
        (["sample", run, "--given", "tree=oak", "--given", "tree=elm", "-o", "x.csv"], "two values of 'tree'"),
        (["sample", run, "--given", "height=300", "-o", "x.csv"], "'height' ran from "),
        (["sample", run, "--given", "height=nan", "-o", "x.csv"], "'height' holds numbers, and 'nan' is none"),
        (["sample", run, "--given", "height=-inf", "-o", "x.csv"], "'height' holds numbers, and '-inf' is none"),
        (["sample", run, "--given", "seen=soon", "-o", "x.csv"], "'seen' holds dates, and 'soon' is none"),
        (["sample", run, "--given", "tree=", "-o", "x.csv"], "'tree' has no empty cells"),
        (["sample", run, "--condition", "tree=oak", "-o", "x.csv"], "is said by --given"),
        (["sample", models["points"], "--given", "tree=oak", "-o", "x.npz"], "--given is for models of tables"),
        (["inspect", trees, "-o", "x.png"], "there is no picture"),
        (["inspect", trees, "--column", "tree:number"], "holds no numbers"),
        (["impute", run, trees, "-o", "x.npz"], "end it in .csv, .tsv, .parquet, .feather"),
        (["impute", models["points"], trees, "-o", "x.csv"], "impute is for models of tables"),
        (
            ["sample", run, "--negative", "oak", "-o", "x.csv"],
            "a model of tables has no guidance: leave --negative out",
        ),
        (["sample", run, "--inpaint", trees, "-o", "x.csv"], "sfumato impute"),
        (["impute", run, "no.csv", "-o", "x.csv"], "no.csv does not exist"),
        (["impute", run, "x.npy", "-o", "x.csv"], "x.npy is no file of rows"),
        (["impute", run, "none.csv", "-o", "x.csv"], "none.csv is empty: its table has no rows"),
        (["impute", run, "words.csv", "-o", "x.csv"], "'age' was of the type int64 in training"),
        (["inspect", "texts.csv"], "--key text learns it as text"),
        (["explain-objective", run], "this model is of a product of several"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of what is refused anyway
            status, out, err = call(*words)
        assert status == 2 and said in err, (words, err)


def test_a_column_that_never_changes_is_named(call, tmp_path):
    csv.write_csv(TREES.append_column("unit", pa.array(["m"] * 300)), tmp_path / "trees.csv")
    status, out, err = call("train", tmp_path / "trees.csv", "-o", tmp_path / "run", *SMALL)
    assert status == 0 and "column 'unit' never changes" in out + err, out + err


def test_samples_with_and_without_the_weights_of_marginals(call, refused, models, trees, tmp_path):
    """Rows that are written in parts, of which some are drawn again, are those that `sample` draws."""
    status, _, err = call("train", trees, "-o", tmp_path / "run", *SMALL)
    assert status == 0, err
    model = sf.calibrate(sf.load(tmp_path / "run"), TREES, 512)
    sf.save(model, tmp_path / "model.safetensors")
    rows = {}
    for more in ([], ["--uncalibrated"]):
        how = ("--batch", "8", "--steps", "3", "--json")
        status, out, err = call("sample", tmp_path / "model.safetensors", "-n", "150", "-o", "out.csv", *how, *more)
        assert status == 0 and json.loads(out)["manifest"].get("uncalibrated", False) == bool(more), err
        expected = frames.arrays(model.spec.table, _rows(sf.uncalibrated(model) if more else model, 150))
        rows[len(more)] = csv.read_csv(tmp_path / "out.csv")["height"].to_pylist()
        assert rows[len(more)] == expected["height"].tolist()
    assert rows[0] != rows[1]
    status, _, err = call("sample", tmp_path / "run", "-n", "30", "-o", "out.csv", "--uncalibrated")
    assert status == 0 and err.count("has not been calibrated, so --uncalibrated changes nothing") == 1, err
    assert "--uncalibrated is for models of tables" in refused("sample", models["points"], "--uncalibrated")


def _rows(model, n):
    return model.spec.denormalise(model.process.table(sf.sample(model, n, steps=3, batch=8, normalised=True)))
