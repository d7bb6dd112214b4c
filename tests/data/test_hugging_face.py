"""Data sets of Hugging Face's `datasets` in memory: each kind of column, splits, rows that are selected, training."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import data
from sfumato.data import hugging_face
from sfumato.data.names import Asked
from sfumato.data.tables import TableFiles
from sfumato.errors import SfumatoError
from sfumato.training.console import Silent

pa = pytest.importorskip("pyarrow")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 9, 8, 3), dtype=np.uint8)
NAMES = ["cat", "dog", "owl"]


def encoded(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def opened(table):
    return hugging_face.of_table(table, "set", None, {}, Asked(None, None))


def test_a_table_of_arrow_is_read_as_a_file_of_it_is(tmp_path):
    """Pictures that are bytes or files, names of classes from the metadata; a missing file is said."""
    cells = [{"bytes": encoded(each), "path": None} for each in PIXELS]
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(cells[i]["bytes"])
        cells[i] = {"bytes": None, "path": str(tmp_path / f"{i}.png")}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    about = {"info": {"features": {"label": {"_type": "ClassLabel", "names": NAMES}}}}
    table = pa.table({"image": pa.array(cells, kind), "label": [i % 3 for i in range(40)], "mass": np.arange(40.0)})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    source = opened(table)
    assert torch.equal(source.x, torch.from_numpy(PIXELS).movedim(-1, 1)) and source.kind == "image"
    assert source.classes == NAMES and list(source.conditions) == ["label", "mass"] and not source.skipped
    assert torch.equal(opened(table.slice(10)).x, source.x[10:])
    keys = [TableFiles([], each, "the set").key() for each in (table, table, table.slice(10))]
    assert keys[0] == keys[1] != keys[2]
    (tmp_path / "1.png").unlink()
    with pytest.raises(SfumatoError, match="1.png, a picture of the data set, cannot be read"):
        opened(table)
    rows = pa.table({"x": pa.array(np.arange(120.0).reshape(40, 3).tolist()), "y": ["a", "b"] * 20})
    assert torch.equal(opened(rows).x, torch.arange(120.0, dtype=torch.float64).reshape(40, 3))
    walks = pa.table({"x": [[float(k) for k in range(3 + i % 4)] for i in range(40)]})
    assert opened(walks).layout == "L"
    text = opened(pa.table({"text": ["some words of a text"] * 200}))
    assert text.kind == "text" and "some words" in text.text.decode(text.x[:3].flatten().tolist())
    assert opened(pa.table({"price": np.arange(40.0), "cut": ["good", "ideal"] * 20})).kind == "table"


class Odd:
    """An object of a module that is called datasets, and what reading it does."""

    __module__, features, save_to_disk, info = "datasets.odd", None, None, None

    def __init__(self, found):
        self.found = found

    def with_format(self, kind):
        if self.found is None:
            raise RuntimeError("no such format")
        return self.found


class Splits(dict):
    __module__, with_format = "datasets.odd", None


def test_odd_objects_in_the_place_of_a_data_set_are_one_sentence():
    for obj, words in {
        Odd(None): r"an Odd is no data set of `datasets` that can be read \(no such format\): give a dict",
        Odd(np.zeros((3, 2))): "its rows are a ndarray",
        Odd({}): "no data set of `datasets` that can be read",
        Odd(pa.table({"x": [1.0, 2.0]})): "no data set of `datasets`",  # without the features of one
    }.items():
        with pytest.raises(SfumatoError, match=words) as caught:
            data.open(obj)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SfumatoError, match="it has no splits"):
        data.open(Splits())


def test_data_sets_in_memory(tmp_path):
    datasets = pytest.importorskip("datasets")
    about = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [Image.fromarray(each) for each in PIXELS], "label": [i % 3 for i in range(40)]}
    made = datasets.Dataset.from_dict(rows, features=about)
    source = data.open(made)
    assert torch.equal(source.x, torch.from_numpy(PIXELS).movedim(-1, 1)) and source.classes == NAMES
    some = made.select([5, 3, 8] * 6)
    assert torch.equal(data.open(some).x, source.x[[5, 3, 8] * 6])
    assert torch.equal(data.open(made.with_format("torch")).x, source.x)
    both = datasets.DatasetDict(train=made, test=some)
    assert len(data.open(both)) == 40 and len(data.open(both, split="test")) == 18
    assert "train" in " ".join(data.open(both).notes)
    with pytest.raises(SfumatoError, match="stream without a known end"):
        data.open(made.to_iterable_dataset())
    with pytest.raises(SfumatoError, match="it has no rows"):
        data.open(made.select([]))
    fields = np.random.default_rng(0).normal(size=(40, 4, 6)).astype(np.float32)
    grid = datasets.Features({"field": datasets.Array2D((4, 6), "float32"), "t": datasets.Value("float32")})
    table = datasets.Dataset.from_dict({"field": fields, "t": np.arange(40) / 7}, features=grid)
    source = data.open(table)
    assert np.array_equal(source.x, fields) and source.x.dtype == torch.float32 and list(source.conditions) == ["t"]
    how = {"net": "tiny", "batch": 16, "precision": "float32", "sample_every": 0, "console": Silent(), "steps": 2}
    run = sf.train(table, tmp_path / "run", **how)
    assert sf.sample(run.denoiser, 3, steps=2, t=2.0).shape == (3, 4, 6)
    frame = datasets.Dataset.from_dict({"price": np.arange(60.0), "cut": ["good", "ideal", None] * 20})
    assert [each.name for each in data.open(frame).table.fields] == ["price", "cut"]
