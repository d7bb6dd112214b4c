"""Data as people lay them out: what is decided, said in a note, and corrected with an argument (cases D1 to D9)."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
import sfumato.data as data
from sfumato.data import images
from sfumato.data.formats import ImageFormat
from sfumato.data.names import array_name, split_of, split_of_file
from sfumato.data.picture import Header
from sfumato.errors import SfumatoError
from sfumato.training.console import Silent

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8, low=0):
    return RNG.integers(low, np.iinfo(dtype).max + 1, shape, dtype)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def fill(folder, count, *shape, dtype=np.uint8):
    arrays = [pixels(*shape, dtype=dtype) for _ in range(count)]
    for i, array in enumerate(arrays):
        save(folder / f"{i:03d}.png", array)
    return np.stack(arrays)


def refused(match, obj, **given):
    with pytest.raises(SfumatoError, match=match) as caught:
        data.open(obj, **given)
    assert "\n" not in str(caught.value)


def said(source, *words):
    for word in words:
        assert any(word in note for note in source.notes), (word, source.notes)


# D1 and D9: the size, channels and depth of the many


@pytest.mark.parametrize("shape", [(1, 1), (9, 12), (1, 400)])
@pytest.mark.parametrize("many", [1, 6])
def test_tracking_pixels_and_thumbnails_are_left_out_and_named(tmp_path, shape, many):
    stored = fill(tmp_path, 20, 48, 48, 3)
    for i in range(many):
        save(tmp_path / f"spacer{i}.png", pixels(*shape, 3))
    source = data.open(tmp_path)
    assert np.array_equal(source.x.numpy(), stored.transpose(0, 3, 1, 2))
    reason = f"{shape[0]} x {shape[1]} pixels, far smaller than most images"
    assert source.skipped == [(f"spacer{i}.png", reason) for i in range(many)]
    assert data.open(tmp_path, size=16).shape == (3, 16, 16) and len(data.open(tmp_path, size=16)) == 20


def test_photographs_of_all_sizes_are_not_shrunk_by_a_small_one(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:02d}.png", pixels(90 + i, 120 - i, 3))
    save(tmp_path / "icon.png", pixels(15, 15, 3))
    save(tmp_path / "small.png", pixels(20, 20, 3))
    source = data.open(tmp_path)
    assert source.shape == (3, 64, 64) and len(source) == 21
    assert source.skipped == [("icon.png", "15 x 15 pixels, far smaller than most images")]
    said(source, "21 of 21 images were resized to cover 64 x 64", "--size sets another")


def test_one_odd_size_is_resized_to_that_of_the_many(tmp_path):
    stored = fill(tmp_path, 30, 100, 80, 3)
    save(tmp_path / "x.png", pixels(101, 80, 3))
    source = data.open(tmp_path)
    assert source.shape == (3, 100, 80) and np.array_equal(source.x[:30].numpy(), stored.transpose(0, 3, 1, 2))
    said(source, "1 of 31 images was resized to cover 100 x 80", "(x.png, 101 x 80)")


@pytest.mark.parametrize(
    ("sizes", "target"),
    [
        ({(48, 48): 6, (40, 40): 4}, (48, 48)),  # of most, and small
        ({(300, 400): 6, (400, 300): 4}, (64, 64)),  # photographs, upright and not: none of both is cut to the other
        ({(300, 400): 9, (400, 300): 1}, (300, 400)),
        ({(300, 400): 10}, None),
        ({(48, 48): 5, (40, 40): 5}, (40, 40)),
        ({(90, 120): 1, (70, 300): 1, (33, 40): 1}, (33, 33)),
    ],
)
def test_the_size_of_a_set(sizes, target):
    headers = [Header("a", *size, 3, "uint8") for size, count in sizes.items() for _ in range(count)]
    assert ImageFormat.of(headers, None).target == target


def test_one_transparent_picture_is_laid_over_white(tmp_path):
    stored = fill(tmp_path, 20, 8, 8, 3)
    logo = pixels(8, 8, 4)
    logo[:2, :, 3], logo[2:4, :, 3] = 0, 255
    save(tmp_path / "logo.png", logo)
    opaque = pixels(8, 8, 4)
    opaque[..., 3] = 128  # an alpha that never changes says nothing of the colours
    save(tmp_path / "plain.png", opaque)
    x = data.open(tmp_path).x
    assert np.array_equal(x[:20].numpy(), stored.transpose(0, 3, 1, 2))
    assert (x[20, :, :2] == 255).all() and np.array_equal(x[20, :, 2:4].numpy(), logo[2:4, :, :3].transpose(2, 0, 1))
    alpha = logo[..., 3:] / 255
    expected = np.rint(alpha * logo[..., :3] + (1 - alpha) * 255)
    assert np.array_equal(x[20].numpy(), expected.transpose(2, 0, 1))
    assert np.array_equal(x[21].numpy(), opaque[..., :3].transpose(2, 0, 1))
    note = "2 images were reduced to 3 channels, as most have (logo.png, plain.png); what is transparent is laid "
    said(data.open(tmp_path), note + "over white")


def test_one_colour_picture_among_grey_ones_and_one_grey_among_colour(tmp_path):
    grey, colour = fill(tmp_path / "grey", 20, 8, 8), pixels(8, 8, 3)
    save(tmp_path / "grey" / "c.png", colour)
    x = data.open(tmp_path / "grey").x
    assert x.shape == (21, 1, 8, 8) and np.array_equal(x[:20, 0].numpy(), grey)
    luminance = np.asarray(Image.fromarray(colour).convert("L")).astype(int)  # Pillow rounds in its own way
    assert abs(x[20, 0].numpy().astype(int) - luminance).max() <= 1
    fill(tmp_path / "colour", 20, 8, 8, 3)
    save(tmp_path / "colour" / "g.png", grey[0])
    x = data.open(tmp_path / "colour").x
    assert x.shape == (21, 3, 8, 8) and (x[20].numpy() == grey[0]).all()
    said(data.open(tmp_path / "colour"), "1 image with fewer channels was promoted to 3")


def test_the_depth_of_the_many(tmp_path):
    low, high = fill(tmp_path / "low", 20, 8, 8), pixels(8, 8, dtype=np.uint16)
    save(tmp_path / "low" / "deep.png", high)
    source = data.open(tmp_path / "low")
    assert source.x.dtype == torch.uint8 and np.array_equal(source.x[:20, 0].numpy(), low)
    assert np.array_equal(source.x[20, 0].numpy(), np.rint(high / 257))
    said(source, "1 image of 16 bits was scaled to 8 bits, as most have (deep.png)")
    deep = fill(tmp_path / "deep", 20, 8, 8, dtype=np.uint16)
    save(tmp_path / "deep" / "low.png", low[0])
    source = data.open(tmp_path / "deep")
    assert np.array_equal(source.x[:20, 0].numpy(), deep) and (source.x[20, 0].numpy() == low[0] * np.uint16(257)).all()
    Image.fromarray(RNG.random((8, 8)).astype(np.float32)).save(tmp_path / "low" / "f.tif")
    source = data.open(tmp_path / "low")
    assert source.x.dtype == torch.uint8
    assert source.skipped == [("f.tif", "its values are float32, and those of most images uint8")]


@pytest.mark.parametrize("alpha", [255, 0, 128])
@pytest.mark.parametrize("kept", ["memory", "cache", "access"])
def test_an_alpha_that_never_changes_is_dropped(tmp_path, monkeypatch, alpha, kept):
    stored = pixels(20, 8, 8, 4)
    stored[..., 3] = alpha
    for i, array in enumerate(stored):
        save(tmp_path / "set" / f"{i:03d}.png", array)
    if kept == "cache":
        monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(images, "WORTH_COUNT", 1)
    if kept == "access":
        monkeypatch.setattr(images, "fits", lambda nbytes: False)
    for _ in range(2):
        source = data.open(tmp_path / "set")
        assert np.array_equal(source.x[torch.arange(20)].numpy(), stored[..., :3].transpose(0, 3, 1, 2))
        said(source, "The alpha channel never changes and was dropped.")
    changed = stored[0].copy()
    changed[0, 0, 3] = 7
    save(tmp_path / "set" / "000.png", changed)
    assert data.open(tmp_path / "set").shape == (4, 8, 8)


# D2 and D4: splits, and the folders that make the classes


def test_folders_named_after_splits_are_no_classes(tmp_path):
    train, test = fill(tmp_path / "train", 20, 8, 8), fill(tmp_path / "test", 5, 8, 8)
    source = data.open(tmp_path)
    assert np.array_equal(source.x[:, 0].numpy(), train) and source.labels is None
    said(source, "Splits by name: test (5 pictures), train (20 pictures). 'train' is read; the others are left out")
    assert np.array_equal(data.open(tmp_path, split="test").x[:, 0].numpy(), test)
    assert data.inspect(tmp_path, split="test")["samples"] == 5
    refused(
        "no split 'val', but test .5 pictures., train .20 pictures.: choose one with --split", tmp_path, split="val"
    )
    refused("train has no splits.*leave --split out", tmp_path / "train", split="train")
    (tmp_path / "train").rename(tmp_path / "dev")
    refused("no split for training, but test .* val .*: choose one with --split", tmp_path)
    assert len(data.open(tmp_path, split="validation")) == 20
    fill(tmp_path / "other", 5, 8, 8)
    assert data.open(tmp_path).classes == ["dev", "other", "test"]  # not all of them are splits


@pytest.mark.parametrize(
    "layout", ["{split}/{name}", "images/{split}/{name}", "{name}/{split}", "a/{split}2017/{name}"]
)
def test_splits_at_any_level_with_classes(tmp_path, layout):
    for split, count in (("Train", 3), ("VAL", 2)):
        for name in ("cats", "dogs"):
            fill(tmp_path / layout.format(split=split, name=name), count, 8, 8)
    source = data.open(tmp_path)
    assert source.classes == ["cats", "dogs"] and source.labels.tolist() == [0] * 3 + [1] * 3
    assert data.open(tmp_path, split="valid").labels.tolist() == [0, 0, 1, 1]


def test_the_level_where_folders_differ_makes_the_classes(tmp_path):
    for name in ("cats", "dogs"):
        for year in ("2019", "2020"):
            fill(tmp_path / "root" / "images" / name / year, 4, 8, 8)
    source = data.open(tmp_path)
    assert source.classes == ["cats", "dogs"] and source.labels.tolist() == [0] * 8 + [1] * 8
    said(source, "The 2 folders in root/images are taken as classes (--condition label:ignore leaves them out)")
    left = data.open(tmp_path, conditions={"label": "ignore"})
    assert left.labels is None
    said(left, "Left out, as asked: label")
    save(tmp_path / "spacer.png", pixels(1, 1))
    assert data.open(tmp_path).classes == ["cats", "dogs"]  # what is left out decides nothing


def test_metadata_of_a_split(tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        fill(tmp_path / split, count, 8, 8)
        rows = "".join(f"{i:03d}.png,{i}.5\n" for i in range(count))
        (tmp_path / split / "metadata.csv").write_text("file_name,age\n" + rows)
    source = data.open(tmp_path)
    assert source.conditions["age"].values.tolist() == [i + 0.5 for i in range(6)]
    assert not any("do not exist" in note for note in source.notes)
    assert len(data.open(tmp_path, split="test").conditions["age"].values) == 4


def test_names_of_splits():
    assert [split_of(word) for word in ("Train", "val2017", "dev", "testing", "trains", "contest")] == [
        "train", "val", "val", "test", None, None,
    ]  # fmt: skip
    files = ["data/train-00000-of-00004.parquet", "imagenet-val-000.tar", "test/000.tar", "a.tar", "train-vs-test.tar"]
    assert [split_of_file(name) for name in files] == ["train", "val", "test", None, None]
    names = [
        "x_train", "train_images", "Xtest", "y_val", "images", "train", "x-dev", "trainable", "test.labels",
        "trainX", "testLabels",
    ]  # fmt: skip
    assert [array_name(name) for name in names] == [
        ("train", "x"), ("train", "images"), ("test", "X"), ("val", "y"), (None, "images"), ("train", "x"),
        ("val", "x"), (None, "trainable"), ("test", "labels"), ("train", "X"), ("test", "Labels"),
    ]  # fmt: skip


# D3: links, loops, runs, and what else is passed over


def test_links_are_followed_and_loops_are_not(tmp_path):
    root, store = tmp_path / "set", tmp_path / "store"
    for name in ("cats", "dogs"):
        fill(store / name, 4, 8, 8)
    fill(root / "owls", 4, 8, 8)
    (root / "cats").symlink_to(store / "cats")
    (root / "dogs").mkdir()
    for i in range(4):
        (root / "dogs" / f"{i}.png").symlink_to(store / "dogs" / f"{i:03d}.png")
    (root / "dogs" / "gone.png").symlink_to(store / "nothing.png")
    (root / "again").symlink_to(root / "owls")
    (root / "self").symlink_to(root)
    (root / "owls" / "up").symlink_to(tmp_path)
    source = data.open(root)
    assert source.classes == ["cats", "dogs", "owls"] and source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dict(source.skipped) == {
        "again/": "a link to owls, which is read already",
        "dogs/gone.png": "a link to nothing",
        "owls/up/": f"a link to {tmp_path.resolve()}, which holds this folder",
        "self/": "a link to this folder, which is read already",
    }
    said(source, "4 files were skipped (again/, dogs/gone.png, owls/up/ and 1 more)")


def test_special_and_hidden_files_are_named(tmp_path):
    fill(tmp_path, 4, 8, 8)
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    (tmp_path / ".git").mkdir()
    save(tmp_path / ".git" / "a.png", pixels(8, 8))
    save(tmp_path / "._000.png", pixels(8, 8))
    source = data.open(tmp_path)
    assert len(source) == 4 and source.skipped == [("pipe.png", "no plain file")]
    said(source, "2 hidden files and folders were not read (._000.png, .git)")


def test_a_run_leaves_its_own_pictures_out(tmp_path):
    """Within the data and in their own folder."""
    stored = fill(tmp_path, 4, 8, 8)
    for place in (tmp_path / "runs" / "first", tmp_path):
        fill(place / "samples", 3, 8, 8)
        (place / "checkpoints").mkdir()
        (place / "config.yaml").write_text("data: .\n")
        source = data.open(tmp_path)
        assert np.array_equal(source.x[:, 0].numpy(), stored)
        said(source, "is a run of sfumato: what it drew is left out")
    assert ("runs/first/", "a run folder of sfumato") in source.skipped
    (tmp_path / "samples2").mkdir()
    fill(tmp_path / "samples2", 2, 8, 8)
    assert len(data.open(tmp_path)) == 6


@pytest.mark.parametrize("how", ["{}", "{}/*.tar", "{}/{{train,val}}-000.tar"])
def test_splits_of_shards(tmp_path, how):
    for split, rows in (("train", range(12)), ("val", range(12, 20))):
        pack(tmp_path / f"{split}-000.tar", {f"{i:04d}.png": png(TARGETS[i]) for i in rows})
    source = data.open(how.format(tmp_path))
    assert np.array_equal(source.x[:, 0].numpy(), TARGETS[:12])
    said(source, "Splits by name: train (1 file), val (1 file). 'train' is read; the others are left out")
    assert np.array_equal(data.open(how.format(tmp_path), split="val").x[:, 0].numpy(), TARGETS[12:])
    assert len(data.open(tmp_path / "val-000.tar")) == 8
    refused("no split 'test', but train", how.format(tmp_path), split="test")


def test_the_kind_that_takes_most_of_a_folder_is_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(6):
            save(tmp_path / "x.png", pixels(32, 32, 3))
            archive.add(tmp_path / "x.png", f"{i}.png")
    source = data.open(tmp_path)
    assert len(source) == 6 and source.skipped == [("x.png", "not one of the archives")]


# D5, D6 and D8: several arrays


def numbered(folder, *arrays):
    np.savez(folder / "a.npz", *arrays)
    return folder / "a.npz"


def test_whole_numbers_beside_the_samples_are_labels(tmp_path):
    x, y = pixels(50, 16, 16, 3), RNG.integers(0, 40, 50)
    source = data.open(numbered(tmp_path, x, y))
    assert np.array_equal(source.x.numpy(), x.transpose(0, 3, 1, 2))
    assert [source.classes[i] for i in source.labels] == [str(label) for label in y]
    said(source, "The samples are 'arr_0', the labels 'arr_1' (--key names other samples, --condition label:ignore")
    assert data.open(numbered(tmp_path, x, y), conditions={"label": "ignore"}).conditions == {}
    assert data.open(numbered(tmp_path, y, x)).classes == source.classes
    assert data.open(numbered(tmp_path, x, y[:, None])).classes == source.classes
    assert data.open(numbered(tmp_path, x, RNG.random(50))).conditions["arr_1"].kind == "scalar"
    assert data.open(numbered(tmp_path, x, y[:7])).labels is None


IMAGES = {"train": pixels(30, 12, 12), "val": pixels(6, 12, 12), "test": pixels(9, 12, 12)}
LABELS = {split: RNG.integers(0, 3, len(x)) for split, x in IMAGES.items()}


@pytest.mark.parametrize("form", ["x_{0} y_{0}", "{0}_images {0}_labels", "X{0} Y{0}", "data.{0} target.{0}"])
@pytest.mark.parametrize("labels_first", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_splits_of_arrays(tmp_path, form, labels_first, column):
    samples, label = form.split()
    pairs = [
        (name.format(split), (x if name == samples else LABELS[split][:, None] if column else LABELS[split]))
        for split, x in reversed(IMAGES.items())
        for name in ((label, samples) if labels_first else (samples, label))
    ]
    np.savez(tmp_path / "a.npz", **dict(pairs))
    for given in (tmp_path / "a.npz", dict(pairs)):
        for split in (None, "train", "test", "val"):
            source = data.open(given, split=split)
            expected = split or "train"
            assert np.array_equal(source.x[:, 0].numpy(), IMAGES[expected])
            assert [int(source.classes[i]) for i in source.labels] == LABELS[expected].tolist()
            assert set(source.conditions) == {"label"}
            said(source, f"'{expected}' is read; the others are left out", f"{samples.format(expected)!r}, the labels")
    assert len(data.open(given, key=samples.format("test"))) == 9
    refused("no split 'dev2', but test .9 samples., train", given, split="dev2")


def test_only_labels_are_no_samples():
    refused("no array that is samples.*--key.*train_labels .30, 1., test_labels", {
        "train_labels": LABELS["train"][:, None], "test_labels": LABELS["test"][:, None],
    })  # fmt: skip


def test_samples_by_name_then_by_size():
    x, y = RNG.normal(size=(40, 5)), RNG.integers(0, 3, 40)
    for samples, label in (("X", "Y"), ("features", "target"), ("Data", "Label"), ("spectra", "targets")):
        source = data.open({label: y, "weights": RNG.normal(size=(40, 3)), samples: x})
        assert np.array_equal(source.x.numpy(), x) and source.labels.tolist() == y.tolist(), samples
        assert source.conditions["weights"].kind == "vector"
    real = data.open({"features": x, "target": RNG.normal(size=40)})
    assert real.conditions["target"].kind == "scalar" and real.labels is None
    refused(r"several arrays that could be samples: name one with --key.*clean \(40, 5\), noisy \(40, 5\)",
            {"clean": x, "noisy": x + 1})  # fmt: skip
    source = data.open({"clean": x, "noisy": x + 1}, key="noisy")
    assert np.array_equal(source.x.numpy(), x + 1) and source.conditions["clean"].kind == "vector"
    refused("no array 'other': it holds clean .40, 5., noisy", {"clean": x, "noisy": x}, key="other")
    refused("the array has no arrays, columns or pairs to choose from by name: leave --key out", x, key="x")
    refused("built-in set digits has no splits", "digits", split="train")


def test_the_same_numbers_in_another_shape_are_no_condition():
    images = pixels(40, 8, 8)
    source = data.open({"data": images.reshape(40, 64).astype(float), "images": images, "target": np.arange(40) % 3})
    assert source.shape == (1, 8, 8) and set(source.conditions) == {"label"}
    said(source, "'data' holds the same numbers and is left out")


def test_fill_values_that_nothing_declares_are_refused():
    masked = np.ma.masked_array(RNG.normal(10, 1, (40, 3)), fill_value=-9999.0)
    assert np.array_equal(data.open(masked).x.numpy(), masked.data)
    masked[3:5, 1] = np.ma.masked
    refused(r"holds 2 values of -9999, far from all others \(.* to .*\)", masked.filled())
    refused("holds 2 values of -9999", masked.filled().astype(np.int32))
    refused(r"the dict: 'x' holds no number", {"x": np.full((40, 3), np.nan)})
    assert len(data.open(np.arange(-9999, 21).reshape(-1, 3))) == 3340  # -9999 beside -9998 marks nothing
    assert len(data.open(np.full((40, 3), -9999.0))) == 40


# D7: several pictures of one sample


def pack(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


INPUTS, TARGETS = pixels(20, 8, 8, 3), pixels(20, 8, 8)


def pairs(place, count=20):
    """The members or files of pairs: name -> content."""
    members = {}
    for i in range(count):
        members[place.format(i, "input")] = png(INPUTS[i])
        members[place.format(i, "target")] = png(TARGETS[i])
    return members


@pytest.mark.parametrize("place", ["{:04d}.{}.png", "a/{0:04d}.{1}.png", "{1}/{0:04d}.png", "set/{1}s/{0:04d}.png"])
@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_pairs_are_a_field_condition(tmp_path, place, archive, labelled):
    members = pairs(place)
    if archive:
        if labelled and "/" not in place:
            members |= {f"{i:04d}.cls": str(i % 2).encode() for i in range(20)}
        source_of = pack(tmp_path / "a.tar", members)
    else:
        for name, content in members.items():
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(content)
        source_of = tmp_path / "set"
    target, given = ("targets", "inputs") if "{1}s" in place else ("target", "input")
    source = data.open(source_of)
    assert np.array_equal(source.x[:, 0].numpy(), TARGETS)
    assert source.conditions[given].kind == "field"
    assert np.array_equal(source.conditions[given].values, INPUTS.transpose(0, 3, 1, 2))
    assert (source.classes == ["0", "1"]) == (archive and labelled and "/" not in place) and not source.skipped
    said(source, f"Pictures of one sample, by name: {target} is learned, given {given} (--key names another)")
    turned = data.open(source_of, key=given)
    assert turned.shape == (3, 8, 8) and np.array_equal(turned.conditions[target].values[:, 0], TARGETS)
    refused(f"no pictures named 'zz', by name {given} .20., {target} .20.", source_of, key="zz")


def test_pairs_with_gaps_and_shards_that_count_alike(tmp_path):
    members = pairs("{:04d}.{}.png", 10)
    members["0003.input.png"] = b"torn"
    del members["0004.target.png"]
    del members["0005.input.png"]
    pack(tmp_path / "a.tar", members)
    pack(tmp_path / "b.tar", pairs("{:04d}.{}.png", 10))
    source = data.open(tmp_path)
    rows = [i for i in range(10) if i != 4]
    assert np.array_equal(source.x[:, 0].numpy(), TARGETS[rows + list(range(10))])
    given = source.conditions["input"]
    assert np.flatnonzero(~given.present).tolist() == [3, 4]
    assert np.array_equal(given.values[given.present][-10:], INPUTS[:10].transpose(0, 3, 1, 2))
    reasons = dict(source.skipped)
    assert set(reasons) == {"a.tar/0003.input.png", "a.tar/0004.input.png"}
    assert reasons["a.tar/0004.input.png"] == "there is no target of its sample"


def test_pictures_of_one_sample_that_no_name_tells_apart(tmp_path):
    members = {f"{i:04d}.{side}.png": png(TARGETS[i]) for i in range(10) for side in ("left", "right")}
    path = pack(tmp_path / "a.tar", members)
    refused("holds several pictures of 10 samples, by name left .10., right .10.: say with --key", path)
    assert data.open(path, key="left").conditions["right"].kind == "field"
    mixed = pack(tmp_path / "b.tar", pairs("{:04d}.{}.png", 8) | {f"p{i}.png": png(TARGETS[i]) for i in range(12)})
    refused("several pictures of 8 samples, by name input .8., target .8., png .12.: say with --key", mixed)
    place = tmp_path / "folder"
    for name in ("tom.asleep.png", "tom.awake.png", "kit.asleep.png", "kit.awake.png"):
        save(place / name, TARGETS[0])
    assert len(data.open(place)) == 4  # in a folder dots are part of names
    refused("has no pairs of pictures to choose from: leave --key out", place, key="asleep")


@pytest.mark.parametrize("archive", [False, True])
def test_captions_beside_pictures_are_a_condition(tmp_path, archive):
    members = {}
    for i in range(20):
        members |= {f"{i:04d}.png": png(INPUTS[i]), f"{i:04d}.txt": f"a boat {i}".encode()}
        if archive:
            members[f"{i:04d}.json"] = json.dumps({"caption": "another", "url": "x"}).encode()
    members["readme.txt"] = b"words"
    if archive:
        source = data.open(pack(tmp_path / "a.tar", members))
    else:
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
        source = data.open(tmp_path)
    assert len(source) == 20 and ["readme" in path for path, _ in source.skipped] == [True]
    assert source.conditions["caption"].kind == "text"
    assert source.conditions["caption"].values.tolist() == [f"a boat {i}" for i in range(20)]
    said(source, "20 captions found, 0 missing, mean 3 words.")


def test_a_model_of_pairs_is_trained_and_asked(tmp_path):
    path = pack(tmp_path / "a.tar", pairs("{:04d}.{}.png"))
    run = sf.train(path, tmp_path / "run", steps=3, batch=4, net="tiny", key="input", snapshots=0, console=Silent())
    assert run.config.key == "input"
    x = sf.sample(run.denoiser, 2, steps=2, target=TARGETS[:2, None])
    assert x.shape == (2, 3, 8, 8) and x.dtype == torch.uint8
