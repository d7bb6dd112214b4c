"""Pictures of any data, and PNG files that carry their manifest."""

import os

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.pictures import beside, grid, picture, save_png

RANDOM = np.random.default_rng(0)


def test_grid_keeps_every_pixel():
    x = RANDOM.integers(0, 256, (6, 3, 40, 50), dtype=np.uint8)
    image = np.asarray(grid(x, columns=3))
    assert image.shape == (2 * 42 + 2, 3 * 52 + 2, 3)
    for i in range(6):
        top, left = 2 + i // 3 * 42, 2 + i % 3 * 52
        assert np.array_equal(image[top : top + 40, left : left + 50], x[i].transpose(1, 2, 0))


def test_small_images_are_enlarged_whole_and_transparent_ones_are_laid_on_white():
    x = np.zeros((1, 4, 8, 8), dtype=np.uint8)
    image = grid(x)
    assert image.size == (68, 68) and image.getpixel((30, 30)) == (255, 255, 255)
    x[0, 3] = 255
    assert grid(x).getpixel((30, 30)) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(2,), (1,), (9,), (1, 128), (3, 97), (1, 28, 28), (12, 33, 50), (1, 24, 20, 28)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float32"])
def test_any_data_gives_a_picture(shape, dtype):
    x = (RANDOM.normal(size=(6, *shape)) * 30 + 100).clip(0, 200).astype(dtype)
    image = picture(x, labels=["one", "two"], columns=3)
    assert image.mode == "RGB" and len(set(np.asarray(image).reshape(-1, 3).sum(1).tolist())) > 10


def test_bad_numbers_still_give_a_picture():
    x = np.full((4, 1, 6, 6), np.nan, dtype=np.float32)
    assert all(picture(v).size[0] > 10 for v in (x, np.zeros((4, 3, 20)), np.ones((5, 2))))


def test_bounds_set_black_and_white():
    x = np.array([0, 100], dtype=np.int64).reshape(2, 1, 1, 1)
    image = np.asarray(picture(x, "image", (0.0, 200.0), columns=2))
    assert image[30, 30].tolist() == [0, 0, 0] and image[30, 30 + 66].tolist() == [128, 128, 128]


def test_labels_stand_before_their_rows():
    x = np.zeros((4, 1, 28, 28), dtype=np.uint8)
    plain, named = picture(x, "image", (0, 255), 2), picture(x, "image", (0, 255), 2, ["T-shirt", "Bag"])
    assert named.height == plain.height and named.width > plain.width + 20
    margin = np.asarray(named)[:, : named.width - plain.width]
    assert (margin[: plain.height // 2] < 128).any() and (margin[plain.height // 2 :] < 128).any()


def test_png_carries_its_manifest(tmp_path):
    image = beside([Image.new("RGB", (40, 30)), Image.new("RGB", (20, 50))], ["raw", "moving average"])
    save_png(image, tmp_path / "a.png", {"seed": 3, "solver": "heun", "labels": ["Sch\u00f6n", 1], "nothing": None})
    assert Image.open(tmp_path / "a.png").text == {
        "seed": "3", "solver": "heun", "labels": '["Sch\\u00f6n", 1]', "nothing": "null",
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["a.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SfumatoError, match="cannot be written"):
        save_png(image, tmp_path / "file" / "a.png")


@pytest.mark.parametrize("x", [np.zeros(4), np.zeros((0, 1, 4, 4))])
def test_what_is_no_batch_is_refused(x):
    with pytest.raises(ValueError, match="samples"):
        picture(x)


def test_columns_of_a_table_have_their_own_ranges():
    """A table with columns of other units is drawn as one whose units are the same."""
    x = RANDOM.uniform(size=(6, 3))
    assert np.array_equal(np.asarray(picture(x)), np.asarray(picture(x * [1.0, 100.0, 0.01] + [0.0, 7.0, -3.0])))
    signal = RANDOM.uniform(size=(6, 40)) * np.linspace(1, 100, 40)
    assert not np.array_equal(np.asarray(picture(signal)), np.asarray(picture(signal / np.linspace(1, 100, 40))))
