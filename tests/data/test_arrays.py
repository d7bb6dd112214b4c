"""Arrays, tensors, .npy and .npz: what is understood, and one sentence for what is not."""

import numpy as np
import pytest
import torch

import sfumato.data as data
from sfumato.errors import SfumatoError


def refused(obj, match, **kwargs):
    with pytest.raises(SfumatoError, match=match) as caught:
        data.open(obj, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", "bool uint8 int8 int16 uint16 int32 int64 float16 float32 float64".split())
def test_a_numpy_array_and_its_file_give_the_same_source(tmp_path, dtype):
    x = (np.arange(60).reshape(10, 6) % 7).astype(dtype)
    np.save(tmp_path / "seven.npy", x)
    for source in (data.open(x), data.open(tmp_path / "seven.npy"), data.open(str(tmp_path / "seven.npy"))):
        assert source.x.numpy().dtype == dtype and np.array_equal(source.x.numpy(), x)
        assert source.kind == "array" and source.labels is None and source.classes == []
        assert list(source.ids) == [str(i) for i in range(10)] and len(source) == 10
    assert source.name == "seven"
    assert "10 samples of shape (6,)" in source.notes[0]


def test_memory_is_not_copied_nor_converted():
    x = np.zeros((100, 3, 5), np.int16)
    assert data.open(x).x.data_ptr() == x.ctypes.data


@pytest.mark.parametrize(
    "array, dtype",
    [
        (np.arange(12, dtype=">i2").reshape(6, 2), torch.int16),
        (np.arange(12, dtype=">f8").reshape(6, 2), torch.float64),
        (np.arange(12, dtype=np.uint32).reshape(6, 2), torch.int64),
        (np.arange(12, dtype=np.uint64).reshape(6, 2), torch.int64),
        (np.arange(12, dtype=np.longdouble).reshape(6, 2), torch.float64),
        (np.arange(24.0).reshape(12, 2)[::-2], torch.float64),
        (np.arange(12.0).reshape(2, 6).T, torch.float64),
    ],
)
def test_unusual_memory_and_wide_types_keep_their_values(array, dtype):
    source = data.open(array)
    assert source.x.dtype == dtype
    assert np.array_equal(source.x.numpy(), array.astype(source.x.numpy().dtype))


def test_a_read_only_array_is_not_written_through():
    x = np.zeros((4, 2))
    x.flags.writeable = False
    data.open(x).x[0] = 1.0
    assert not x.any()


@pytest.mark.parametrize(
    "shape, dtype, expected, kind",
    [
        ((20,), "float32", (1,), "array"),
        ((20, 28, 28), "uint8", (1, 28, 28), "image"),
        ((20, 8, 8), "uint16", (1, 8, 8), "image"),
        ((20, 28, 28), "float32", (28, 28), "array"),
        ((20, 1, 128), "uint8", (1, 128), "array"),
        ((20, 3, 97), "uint8", (3, 97), "array"),
        ((20, 16, 12, 3), "uint8", (3, 16, 12), "image"),
        ((20, 16, 12, 4), "uint16", (4, 16, 12), "image"),
        ((20, 16, 12, 1), "uint8", (1, 16, 12), "image"),
        ((20, 3, 16, 12), "uint8", (3, 16, 12), "image"),
        ((20, 3, 32, 3), "uint8", (3, 32, 3), "image"),
        ((20, 16, 12, 3), "float32", (16, 12, 3), "array"),
        ((20, 12, 33, 50), "uint8", (12, 33, 50), "array"),
    ],
)
def test_axes_are_understood_and_said(shape, dtype, expected, kind):
    source = data.open(np.zeros(shape, dtype))
    assert source.shape == expected and source.kind == kind
    plain = shape[1:] == expected and not (dtype == "float32" and shape != (20, 12, 33, 50))
    assert plain or len(source.notes) > 1


def test_channels_last_pixels_land_where_they_belong():
    x = np.random.default_rng(0).integers(0, 256, (5, 16, 12, 3), np.uint8)
    assert np.array_equal(data.open(x).x.numpy()[3, 2, 7, 11], x[3, 7, 11, 2])
    assert data.open(x).x.is_contiguous()


def test_npz_keys(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    for data_key in ("x", "images", "data", "anything"):
        for label_key in ("y", "labels", "label"):
            np.savez(tmp_path / "a.npz", **{"other": np.zeros(3), label_key: y, data_key: x})
            source = data.open(tmp_path / "a.npz")
            assert np.array_equal(source.x.numpy(), x) and source.labels.tolist() == y.tolist()
    np.savez(tmp_path / "b.npz", scale=np.array(3.0))
    refused(tmp_path / "b.npz", "has no array with one entry a sample: it holds scale$")
    np.savez(tmp_path / "c.npz")
    refused(tmp_path / "c.npz", "it holds nothing$")
    np.savez(tmp_path / "d.npz", x=x, meta=np.array([{"a": 1}], dtype=object))
    refused(tmp_path / "d.npz", "meta.npy: it holds pickled Python objects")


def test_tuple_dict_and_list():
    x, y = torch.randn(6, 4), ["b", "a", "b", "c", "a", "b"]
    for source in (data.open((x, y)), data.open({"x": x, "labels": y}), data.open(x, labels=y)):
        assert torch.equal(source.x, x)
        assert source.classes == ["a", "b", "c"] and source.labels.tolist() == [1, 0, 1, 2, 0, 1]
    assert torch.equal(data.open(list(x)).x, x)
    assert data.open([[1, 2], [3, 4]]).x.tolist() == [[1, 2], [3, 4]]
    assert data.open((x, None)).labels is None
    assert data.open(source) == source


def test_a_handful_of_samples_is_said():
    for count, said in ((5, True), (15, True), (16, False)):
        source = data.open(np.zeros((count, 2)))
        assert any(f"only {count} samples" in note for note in source.notes) == said, count
        assert data.open(source) == source
    few = data.open(np.zeros((3, 2)), conditions=data.DataSpec.fit(source))  # of data to be judged by a model
    assert not any("only" in note for note in few.notes)


def test_a_tensor_with_gradients_is_taken_as_numbers():
    assert not data.open(torch.randn(4, 2, requires_grad=True)).x.requires_grad


@pytest.mark.parametrize(
    "labels, classes, indices",
    [
        ([5, -2, 5, 100], ["-2", "5", "100"], [1, 0, 1, 2]),
        (np.array([1.0, 0.0, 1.0, 0.0]), ["0", "1"], [1, 0, 1, 0]),
        ([True, False, True, True], ["0", "1"], [1, 0, 1, 1]),
        (torch.tensor([[3], [4], [3], [4]]), ["3", "4"], [0, 1, 0, 1]),
        (np.array(["x", "yy", "x", "x"], dtype=object), ["x", "yy"], [0, 1, 0, 0]),
        (np.array([b"x", b"yy", b"x", b"x"]), ["x", "yy"], [0, 1, 0, 0]),
    ],
)
def test_labels_of_any_kind(labels, classes, indices):
    source = data.open(np.zeros((4, 2)), labels=labels)
    assert source.classes == classes
    assert source.labels.dtype == torch.int64 and source.labels.tolist() == indices


def test_a_single_class_is_no_condition():
    source = data.open(np.zeros((4, 2)), labels=["same"] * 4)
    assert source.labels is None and source.classes == [] and "one class (same)" in source.notes[-1]


def test_labels_that_look_like_names_of_samples_are_questioned():
    source = data.open(np.zeros((30, 2)), labels=list(range(30)))
    assert "30 classes for 30 samples" in source.notes[-1]


@pytest.mark.parametrize(
    "labels, match",
    [
        ([0, 1, 2], "3 labels for 4 samples"),
        ([0.5, 1, 2, 3], "label 0 is 0.5"),
        ([0, float("nan"), 2, 3], "label 1 is nan"),
        (np.zeros((4, 2), int), r"one per sample, shape \(N,\)"),
        ([[1], [1, 2], [3], [4]], r"label 0 is \[1\]: labels must be all"),
        ([None, "a", "b", "c"], "label 0 is None"),
        (np.array([1j, 2, 3, 4]), "integers or strings"),
    ],
)
def test_labels_that_cannot_be_used(labels, match):
    refused(np.zeros((4, 2)), match, labels=labels)


def test_infinite_values_are_counted_and_located():
    x = np.zeros((50, 3, 4), np.float32)
    x[3, 0, 0], x[17, 2, 1], x[30, 0, 0] = np.nan, np.inf, -np.inf
    refused(x, r"2 values that are infinite, the first at index \(17, 2, 1\)")
    refused(torch.full((3, 2), torch.nan, dtype=torch.float16), "holds no number, all are missing")


@pytest.mark.parametrize(
    "obj, match",
    [
        (np.zeros((4, 2), complex), "complex.*two channels"),
        (torch.zeros(4, 2, dtype=torch.complex64), "complex.*two channels"),
        (np.array([{}, []], dtype=object), "must hold numbers"),
        (np.array(["a", "b"]), "must hold numbers"),
        ([[[1, 2]], [3]], "several shapes, .1, 2. and, number 1, .1,."),
        ([torch.zeros(2, 3), torch.zeros(3, 4)], "different shapes"),
        (np.float64(3.0), "single number"),
        (np.zeros((0, 4)), "empty"),
        (np.zeros((4, 0)), "empty"),
        (torch.zeros(4, 4).to_sparse(), "dense"),
        ({"a": np.float64(3)}, "no array with one entry a sample"),
        (torch.zeros(20, 3, device="meta"), "on the meta device"),
        (None, "NoneType is not data"),
        (len, "is not data"),
        (np.full((2, 2), 2**64 - 1, np.uint64), "beyond"),
    ],
)
def test_objects_that_are_no_data(obj, match):
    refused(obj, match)


def test_size_is_for_images():
    refused(np.zeros((4, 2)), "size is for images", size=8)
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 12), np.uint8)
    assert data.open(x, size=8).shape == (3, 8, 8)
    assert data.open(x, size=(16, 12)).x.numpy().tobytes() == x.tobytes()
    for wrong in (0, -3, (1, 2, 3), "big"):
        refused(x, "size must be", size=wrong)


def test_files_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "cut.npy", np.zeros((100, 10)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    np.savez(tmp_path / "cut.npz", x=np.zeros((100, 10)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object))
    for name in ("cut.npy", "cut.npz", "text.npy", "empty.npy"):
        refused(tmp_path / name, f"{name} cannot be read")
    refused(tmp_path / "objects.npy", "pickled Python objects, which are never loaded")
    (tmp_path / "table.xls").write_text("a,b\n1,2\n")
    refused(tmp_path / "table.xls", "not a kind of data")


def test_missing_paths_suggest_what_was_meant(tmp_path):
    (tmp_path / "photos").mkdir()
    refused("fashon", "did you mean the built-in set 'fashion'")
    refused(str(tmp_path / "photo"), "does not exist: did you mean .*photos")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    refused(tmp_path / "link", "link is a link to nothing")
    refused(str(tmp_path / "zzz" / "qqq"), "not one of the built-in sets")
    refused("", "no data given")


def test_a_file_larger_than_memory_stays_on_the_disk(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 255, (40, 12, 10, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    usual = data.open(str(tmp_path / "x.npy"))
    monkeypatch.setattr("sfumato.machine.available", lambda: 1000.0)
    source = data.open(str(tmp_path / "x.npy"))
    assert not isinstance(source.x, torch.Tensor) and source.shape == usual.shape == (3, 12, 10)
    assert source.kind == "image" and torch.equal(source.x[:], usual.x) and "read when needed" in source.notes[-1]
    index = torch.tensor([30, 2, 2])
    assert torch.equal(source.x[index], usual.x[index])
    assert data.DataSpec.fit(source) == data.DataSpec.fit(usual)
    assert data.inspect(source)["duplicates"] == data.inspect(usual)["duplicates"] == 0
    with pytest.raises(SfumatoError, match="larger than memory, and size cannot change it"):
        data.open(str(tmp_path / "x.npy"), size=8)
