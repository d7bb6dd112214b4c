"""The vendored sets, and what `inspect` says of them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato.data as data
from sfumato.data import builtin
from sfumato.errors import SfumatoError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def check_assets():
    spec = importlib.util.spec_from_file_location("check_assets", ROOT / "scripts" / "check_assets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name, shape, classes",
    [("fashion", (10_000, 1, 28, 28), 10), ("emoji", (3121, 3, 32, 32), 8), ("digits", (1797, 1, 8, 8), 10)],
)
def test_a_built_in_set_opens_by_name(name, shape, classes):
    source = data.open(name)
    assert source.x.shape == shape and source.x.dtype == torch.uint8 and source.kind == "image"
    assert len(source.classes) == classes and source.name == name
    assert sorted(set(source.labels.tolist())) == list(range(classes))
    assert len(set(source.ids)) == len(source) == len(source.groups)
    assert source.x.flatten(1).double().std(1).min() > 0  # no tile is blank


def test_fashion_labels_belong_to_their_pictures():
    source = data.open("fashion")
    mean = {name: source.x[source.labels == i].double().mean(0)[0] for i, name in enumerate(source.classes)}
    assert mean["Sneaker"][:8].mean() < 5 < 50 < mean["Sneaker"][14:20].mean()  # low: nothing above the shoe
    assert mean["Trouser"][20:, 13:15].mean() < mean["Trouser"][20:, 10:12].mean()  # a gap between the legs
    assert source.labels.bincount().tolist() == [1000] * 10


def test_no_skin_variant_of_a_held_out_emoji_is_trained_on():
    source = data.open("emoji")
    names = json.loads((builtin.ASSETS / "fluent32.json").read_text(encoding="utf-8"))
    train, holdout = source.split()
    sides = [{names["name"][i].split(" skin ")[0] for i in side.tolist()} for side in (train, holdout)]
    assert not sides[0] & sides[1]
    variants = [i for i in holdout.tolist() if names["skin_variant"][i]]
    assert len(variants) > 10  # the rule has something to do
    assert 0.03 < len(holdout) / len(source) < 0.08


def test_no_picture_of_the_emoji_hold_out_is_trained_on():
    source = data.open("emoji")
    train, holdout = source.split()
    seen = {source.x[i].numpy().tobytes() for i in train.tolist()}
    assert not any(source.x[i].numpy().tobytes() in seen for i in holdout.tolist())


@pytest.mark.parity
def test_digits_are_scikit_learns_and_bounded_by_16(check_assets):
    assert (builtin.ASSETS / "digits.npz").read_bytes() == check_assets.digits_bytes()


def test_digits_stay_in_0_to_16_even_when_resized():
    for source in (data.open("digits"), data.open("digits", size=12)):
        assert int(source.x.max()) == 16
        spec = data.DataSpec.fit(source)
        assert spec.bounds == (0, 16)
        assert int(spec.denormalise(torch.full((1, *source.shape), 100.0)).max()) == 16


def test_every_asset_agrees_with_its_manifest_and_is_in_notice(check_assets):
    assert check_assets.differences() == []
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert all(name in notice for name in json.loads(check_assets.MANIFEST.read_text(encoding="utf-8")))


def test_a_changed_a_missing_and_a_foreign_asset_are_named(check_assets, tmp_path, monkeypatch):
    manifest = json.loads(check_assets.MANIFEST.read_text(encoding="utf-8"))
    for name in manifest:
        (tmp_path / name).write_bytes((builtin.ASSETS / name).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setattr(check_assets, "ASSETS", tmp_path)
    monkeypatch.setattr(check_assets, "MANIFEST", tmp_path / "manifest.json")
    assert check_assets.main([]) == 0
    (tmp_path / "digits.npz").write_bytes(b"other")
    (tmp_path / "fluent32.json").unlink()
    (tmp_path / "cat.png").write_bytes(b"cat")
    assert check_assets.main([]) == 1
    assert check_assets.differences() == [
        "fluent32.json is missing",
        "cat.png is not in the manifest",
        "digits.npz differs from its manifest",
    ]


@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_a_damaged_installation_is_one_sentence(tmp_path, monkeypatch, content):
    if content is not None:
        for file in builtin.ASSETS.iterdir():
            (tmp_path / file.name).write_bytes(content)
    monkeypatch.setattr(builtin, "ASSETS", tmp_path)
    for name in builtin.NAMES:
        with pytest.raises(SfumatoError, match=f"built-in set '{name}' cannot be read.*reinstall"):
            data.open(name)


def test_a_folder_of_the_same_name_is_mentioned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert "write ./digits" in data.open("digits").notes[-1]
    with pytest.raises(SfumatoError, match="is empty"):
        data.open("./digits")


def test_inspect_reports_in_json_what_is_there():
    x = np.random.default_rng(0).normal(5, 2, (40, 3, 6))
    x[:, 1] = 7.0
    x[11], x[30] = x[3], x[3]
    report = json.loads(json.dumps(data.inspect(x, labels=["a", "b"] * 20)))
    assert report["samples"] == 40 and report["shape"] == [3, 6] and report["dtype"] == "float64"
    assert report["kind"] == "array" and report["classes"] == {"a": 20, "b": 20}
    assert report["range"] == [x.min(), x.max()]
    assert report["mean"] == pytest.approx(x.mean((0, 2))) and report["std"] == pytest.approx(x.std((0, 2)))
    assert report["constant_channels"] == [1] and report["duplicates"] == 2
    assert report["train"] + report["holdout"] == 40 and report["holdout"] >= 1


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int64", "float16", "float32"])
def test_duplicates_are_counted_in_every_dtype(dtype):
    x = (np.arange(6)[:, None] // np.array([1, 2, 4]) % 2).astype(dtype)  # six different rows
    assert data.inspect(x)["duplicates"] == 0
    assert data.inspect(np.concatenate([x, x[2:4]]))["duplicates"] == 2


def test_samples_without_any_value_are_no_copies():
    x = np.arange(12.0).reshape(6, 2)
    x[[0, 3, 5]] = np.nan
    x[4] = x[2] = [np.nan, 7.0]
    assert data.inspect(x)["duplicates"] == 1
