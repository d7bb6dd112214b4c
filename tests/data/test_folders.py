"""Folders of real image files: modes, depths, sizes, damage, classes."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.data as data
from sfumato.data import png16
from sfumato.errors import SfumatoError

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


def refused(path, match, **kwargs):
    with pytest.raises(SfumatoError, match=match) as caught:
        data.open(path, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape, dtype", [((9, 7), np.uint8), ((9, 7, 3), np.uint8), ((9, 7, 4), np.uint8), ((9, 7), np.uint16)], ids=str
)
def test_pixels_are_as_stored(tmp_path, shape, dtype):
    arrays = [pixels(*shape, dtype=dtype) for _ in range(4)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"{i}.png", array)
    source = data.open(tmp_path)
    expected = np.stack([a.reshape(9, 7, -1).transpose(2, 0, 1) for a in arrays])
    assert source.kind == "image" and source.x.numpy().dtype == dtype
    assert np.array_equal(source.x.numpy(), expected)
    assert source.ids == ["0.png", "1.png", "2.png", "3.png"] and source.labels is None
    assert source.name == tmp_path.name and not source.skipped
    spec = data.DataSpec.fit(source, torch.arange(4))
    assert spec.bounds == (0, 255 if dtype == np.uint8 else 65535)
    assert torch.equal(spec.denormalise(spec.normalise(source.x)), source.x)


def write_png16(path, array, kinds):
    """An independent encoder of 16-bit PNG: the filters of the specification, forwards, byte by byte."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step, raw = 2 * channels, bytearray()
    for i, row in enumerate(rows):
        kind, above = kinds[i % len(kinds)], rows[i - 1] if i else np.zeros_like(rows[0])
        raw.append(kind)
        for k, value in enumerate(row):
            a, b = (row[k - step] if k >= step else 0), above[k]
            c = above[k - step] if k >= step else 0
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            raw.append((value - [0, a, b, (a + b) // 2, nearest][kind]) % 256)
    colour = {2: 4, 3: 2, 4: 6}[channels]
    body = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    for name, part in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(raw))), (b"IEND", b"")):
        body += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    path.write_bytes(body)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [4], [4, 2, 0, 3, 1]], ids=str)
def test_sixteen_bit_colour_keeps_all_its_bits(tmp_path, channels, kinds):
    array = pixels(11, 6, channels, dtype=np.uint16)
    write_png16(tmp_path / "deep.png", array, kinds)
    x = data.open(tmp_path).x
    assert x.dtype == torch.uint16
    expected = array[:, :, [0, 0, 0, 1]] if channels == 2 else array
    assert np.array_equal(x.numpy()[0], expected.transpose(2, 0, 1))
    with Image.open(tmp_path / "deep.png") as seen:  # a reader of 8 bits agrees on the high bytes
        assert np.array_equal(np.asarray(seen), (expected >> 8).astype(np.uint8))


def test_filters_are_undone_as_pillow_does_for_its_own_files(tmp_path):
    smooth = np.add.outer(np.arange(40) * 3, np.arange(31) * 2)[:, :, None] + np.arange(3)
    array = (smooth + RNG.integers(0, 9, (40, 31, 3))).astype(np.uint8)
    save(tmp_path / "a.png", array)
    width, height, _, packed = png16._chunks((tmp_path / "a.png").read_bytes())
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    assert len(set(rows[:, 0].tolist())) > 1  # Pillow chose several filters
    assert np.array_equal(png16._unfilter(rows[:, 0], rows[:, 1:].reshape(height, width, 3)), array)


def test_a_damaged_deep_png_is_skipped(tmp_path):
    write_png16(tmp_path / "good.png", pixels(8, 8, 3, dtype=np.uint16), [4])
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-60])
    (tmp_path / "flipped.png").write_bytes(whole[:80] + bytes([whole[80] ^ 255]) + whole[81:])
    source = data.open(tmp_path)
    assert source.ids == ["good.png"]
    assert [path for path, _ in source.skipped] == ["cut.png", "flipped.png"]


@pytest.mark.parametrize("mode, channels", [("1", 1), ("L", 1), ("LA", 4), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_modes_become_one_three_or_four_channels(tmp_path, mode, channels):
    image = Image.fromarray(pixels(8, 8, 3)).convert(mode)
    if channels == 4:
        image.putalpha(Image.fromarray(pixels(8, 8)))  # one that never changes is dropped
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        reference = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(8, 8, -1)
    source = data.open(tmp_path)
    assert np.array_equal(source.x.numpy()[0], reference.transpose(2, 0, 1))
    assert source.x.dtype == torch.uint8


@pytest.mark.parametrize("mode, dtype", [("F", np.float32), ("I", np.int32)])
def test_thirty_two_bit_files_are_arrays_without_bounds(tmp_path, mode, dtype):
    array = (RNG.normal(size=(8, 8)) * 1e6).astype(dtype)
    Image.fromarray(array, mode=None).save(tmp_path / "a.tif")
    source = data.open(tmp_path)
    assert source.kind == "array" and np.array_equal(source.x.numpy()[0, 0], array)
    assert data.open(tmp_path, size=4).shape == (1, 4, 4)
    save(tmp_path / "b.png", pixels(8, 8))
    refused(tmp_path, r"share no scale.*a\.tif is (float|int)32, b\.png is uint8")


def test_mixed_modes_are_promoted_to_the_widest_and_said(tmp_path):
    grey, colour, clear = pixels(8, 8), pixels(8, 8, 3), pixels(8, 8, 4)
    for name, array in (("a", grey), ("b", colour), ("c", clear)):
        save(tmp_path / f"{name}.png", array)
    source = data.open(tmp_path)
    x = source.x.numpy()
    assert x.shape == (3, 4, 8, 8)
    assert (x[0, :3] == grey).all() and (x[0, 3] == 255).all()
    assert np.array_equal(x[1, :3], colour.transpose(2, 0, 1)) and (x[1, 3] == 255).all()
    assert np.array_equal(x[2], clear.transpose(2, 0, 1))
    assert any("2 images with fewer channels were promoted to 4" in note for note in source.notes)


def test_eight_bits_beside_sixteen_are_scaled_and_said(tmp_path):
    low, high = pixels(8, 8), pixels(8, 8, dtype=np.uint16)
    save(tmp_path / "a.png", low)
    save(tmp_path / "b.png", high)
    source = data.open(tmp_path)
    assert np.array_equal(source.x.numpy()[:, 0], np.stack([low.astype(np.uint16) * 257, high]))
    assert any("1 image of 8 bits was scaled" in note for note in source.notes)


def test_a_grey_deep_file_beside_a_colour_one_is_opaque_at_full_scale(tmp_path):
    save(tmp_path / "a.png", pixels(8, 8, dtype=np.uint16))
    write_png16(tmp_path / "b.png", pixels(8, 8, 4, dtype=np.uint16), [1])
    assert (data.open(tmp_path).x.numpy()[0, 3] == 65535).all()


def test_bad_files_among_good_ones_are_listed_with_the_reason(tmp_path):
    for i in range(5):
        save(tmp_path / f"good{i}.png", pixels(16, 16, 3))
    whole = (tmp_path / "good0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.webp").write_text("hello")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.png").write_bytes(b"")
    source = data.open(tmp_path)
    assert source.ids == [f"good{i}.png" for i in range(5)] and len(source) == 5
    reasons = dict(source.skipped)
    assert set(reasons) == {"cut.png", "empty.jpg", "text.webp", "notes.txt"} and all(reasons.values())
    assert "empty" in reasons["empty.jpg"] and "trunc" in reasons["cut.png"] and reasons["notes.txt"] == "not an image"
    assert (
        "4 files were skipped (cut.png, empty.jpg, notes.txt and 1 more); `sfumato inspect` says why." in source.notes
    )


def test_a_broken_file_does_not_shape_the_rest(tmp_path):
    kept = [pixels(20, 20, 3) for _ in range(3)]
    for i, array in enumerate(kept):
        save(tmp_path / f"{i}.png", array)
    save(tmp_path / "z.png", pixels(12, 30, 4))
    whole = (tmp_path / "z.png").read_bytes()
    (tmp_path / "z.png").write_bytes(whole[: len(whole) // 2])
    source = data.open(tmp_path)
    assert np.array_equal(source.x.numpy(), np.stack(kept).transpose(0, 3, 1, 2))
    assert [path for path, _ in source.skipped] == ["z.png"]


def test_unequal_sizes_follow_the_rule_and_it_is_said(tmp_path):
    save(tmp_path / "a.png", np.full((90, 120, 3), 50, np.uint8))
    save(tmp_path / "b.png", np.full((70, 300, 3), 200, np.uint8))
    source = data.open(tmp_path)
    assert source.shape == (3, 64, 64)
    assert source.x.float().mean((1, 2, 3)).tolist() == [50, 200]
    assert any("2 of 2 images were resized to cover 64 x 64" in note for note in source.notes)
    save(tmp_path / "c.png", np.full((33, 40, 3), 9, np.uint8))
    assert data.open(tmp_path).shape == (3, 33, 33)
    assert data.open(tmp_path, size=16).shape == (3, 16, 16)
    assert data.open(tmp_path, size=(10, 24)).shape == (3, 10, 24)


def test_the_crop_is_centred(tmp_path):
    array = np.zeros((32, 96), np.uint8)
    array[:, 32:64] = 255
    save(tmp_path / "a.png", array)
    assert (data.open(tmp_path, size=32).x == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resizing_keeps_a_ramp_a_ramp_at_any_depth(tmp_path, dtype):
    top = np.iinfo(dtype).max
    ramp = np.tile(np.linspace(0, top, 64), (64, 1)).round().astype(dtype)
    save(tmp_path / "a.png", ramp)
    small = data.open(tmp_path, size=16).x.numpy()[0, 0].astype(float) / top
    expected = np.linspace(0, 1, 64).reshape(16, 4).mean(1)
    assert small.shape == (16, 16) and abs(small[:, 2:-2] - expected[2:-2]).max() < 0.01


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for name, count in (("zebra", 2), ("ant", 3), ("bee", 1)):
        for i in range(count):
            save(tmp_path / name / "deeper" / f"{i}.png", pixels(8, 8))
    source = data.open(tmp_path)
    assert source.classes == ["ant", "bee", "zebra"]
    assert source.labels.tolist() == [0, 0, 0, 1, 2, 2]
    assert source.ids[0] == "ant/deeper/0.png"
    assert data.inspect(source)["classes"] == {"ant": 3, "bee": 1, "zebra": 2}
    assert data.open(tmp_path, labels=[0, 1, 0, 1, 0, 1]).classes == ["0", "1"]
    save(tmp_path / "loose.png", pixels(8, 8))
    mixed = data.open(tmp_path)
    assert mixed.labels is None and any("1 image is outside the sub-folders" in note for note in mixed.notes)


def test_train_and_test_are_not_taken_for_classes(tmp_path):
    for split in ("test", "train"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "a.png", pixels(8, 8))
    source = data.open(tmp_path)
    assert source.classes == ["cat", "dog"] and source.ids == ["train/cat/a.png", "train/dog/a.png"]
    assert data.open(tmp_path, split="test").ids == ["test/cat/a.png", "test/dog/a.png"]
    assert data.open(tmp_path / "train").classes == ["cat", "dog"]


def test_one_sub_folder_is_no_condition(tmp_path):
    save(tmp_path / "only" / "a.png", pixels(8, 8))
    source = data.open(tmp_path)
    assert source.labels is None and any("one class (only)" in note for note in source.notes)


def test_a_rotated_photograph_stands_upright(tmp_path):
    array = np.zeros((16, 24, 3), np.uint8)
    array[:, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the stored left becomes the top
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    x = data.open(tmp_path).x
    assert x.shape == (1, 3, 24, 16)
    assert (x[0, :, :12] == 255).all() and (x[0, :, 12:] == 0).all()


def test_of_several_frames_the_first_is_used_and_it_is_said(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    source = data.open(tmp_path)
    assert (source.x == 10).all() and any("several frames" in note for note in source.notes)


def test_folders_that_hold_nothing(tmp_path):
    refused(tmp_path, "is empty")
    (tmp_path / "a.log").write_text("x")
    refused(tmp_path, "no images among its 1 files")
    np.save(tmp_path / "b.npy", np.zeros((3, 2)))
    refused(tmp_path, r"no images among its 2 files; for an array give its file, e.g. .*b\.npy")
    (tmp_path / "c.png").write_text("broken")
    refused(tmp_path, r"no image could be read: c\.png")
    (tmp_path / "d.png").write_bytes(b"")
    refused(tmp_path, r"no image could be read: .*and 1 more")
    refused(tmp_path / "c.png", "is a single image: give the folder")


def test_labels_of_another_length_are_refused(tmp_path):
    save(tmp_path / "a.png", pixels(8, 8))
    refused(tmp_path, "2 labels for 1 sample", labels=[0, 1])
