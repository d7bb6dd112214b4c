"""`sample`: what is written, what is said of it, and what bad input gets."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato as sf
from sfumato.files import atomic

QUICK = ("--steps", 2, "--precision", "float32")


def text_of(path) -> dict[str, str]:
    with Image.open(path) as image:
        image.load()
        return dict(image.text)


def test_an_npz_holds_samples_in_the_units_of_the_data(call, models):
    status, out, err = call("sample", models["points"], "-n", 5, "-o", "a/out.npz", *QUICK)
    assert status == 0 and "a/out.npz" in out
    with np.load("a/out.npz") as data:
        x, manifest = data["x"], json.loads(str(data["manifest"]))
        assert "labels" not in data
    assert x.dtype == np.float64 and x.shape == (5, 2) and 90 < x.mean() < 110
    expected = sf.sample(sf.load(models["points"]), 5, steps=2)
    assert np.array_equal(x, expected.numpy())
    assert manifest["seed"] == 0 and manifest["calls"] == 2 and len(manifest["model_hash"]) == 64


def test_what_a_kill_left_half_written_goes_with_the_next_file_of_that_name(call, models):
    words = "import os; from sfumato.files import atomic\nwith atomic('out.npz'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 9
    (left,) = Path().glob(".out.npz.*.tmp")
    elsewhere = left.with_name(f".out.npz.{int(left.stem[-16:-12], 16) ^ 1:04x}{left.stem[-12:]}.tmp")
    elsewhere.touch()  # as another machine names its own in a folder that both share
    with atomic("out.npz") as ours:  # that of a process that still writes it stays
        assert len(list(Path().glob(".out.npz.*.tmp"))) == 3
        assert call("sample", models["points"], "-n", 2, "-o", "other.npz", *QUICK)[0] == 0
        assert len(list(Path().glob(".out.npz.*.tmp"))) == 3
        assert call("sample", models["points"], "-n", 2, "-o", "out.npz", *QUICK)[0] == 0
        assert {*Path().glob(".out.npz.*.tmp")} == {ours, elsewhere}


def test_an_adaptive_solver_keeps_to_its_tolerance(call, models, monkeypatch):
    pytest.importorskip("torchdiffeq")
    common = ("sample", models["points"], "-n", 4, "--precision", "float32")
    assert call(*common, "-o", "a.npz", "--solver", "adaptive")[0] == 0
    assert call(*common, "-o", "f.npz", "--solver", "heun", "--steps", 100)[0] == 0
    with np.load("a.npz") as adaptive, np.load("f.npz") as fine:
        assert np.abs(adaptive["x"] - fine["x"]).max() < 1e-3 * fine["x"].std()
        manifest = json.loads(str(adaptive["manifest"]))
    assert manifest["solver"].startswith("Adaptive(dopri5") and manifest["calls"] > 20
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    status, out, err = call(*common, "-o", "b.npz", "--solver", "adaptive")
    assert status != 0 and "sfumato[adaptive]" in err and "Traceback" not in err and not Path("b.npz").exists()


def test_labels_are_class_indices_and_names_are_beside_them(call, models):
    assert call("sample", models["images"], "-n", 7, "-o", "x.npz", *QUICK)[0] == 0
    with np.load("x.npz") as data:
        assert data["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert data["classes"].tolist() == ["3", "5", "9"] and data["x"].dtype == np.uint8
    assert call("sample", models["images"], "-n", 2, "-o", "y.npz", "--class", "9", *QUICK)[0] == 0
    with np.load("y.npz") as data:
        assert data["labels"].tolist() == [2, 2]
        assert json.loads(str(data["manifest"]))["class"] == "9"


def test_a_grid_has_a_class_a_row_and_carries_its_manifest(call, models):
    status, out, err = call("sample", models["images"], "-o", "grid.png", "--guidance", 2.5, "--seed", 3, *QUICK)
    assert status == 0 and "30 samples" in out and "all 3 classes in turn" in err
    with Image.open("grid.png") as image:
        assert image.width > 3 * image.height  # ten columns, three rows
    text = text_of("grid.png")
    assert text["guidance"] == "2.5" and text["seed"] == "3" and text["steps"] == "2" and text["number"] == "30"
    assert "multistep" in text["solver"].lower() and sf.__version__ in text["software"]
    assert text["model_hash"] == json.loads(call("info", models["images"], "--json")[1])["hash"]


def test_a_folder_gets_one_picture_a_sample_with_the_pixels_of_the_array(call, models):
    assert call("sample", models["images"], "-n", 4, "-o", "out/", *QUICK)[0] == 0
    assert call("sample", models["images"], "-n", 4, "-o", "out.npz", *QUICK)[0] == 0
    files = sorted(Path("out").iterdir())
    assert [f.name for f in files] == ["00000_3.png", "00001_5.png", "00002_9.png", "00003_3.png"]
    with np.load("out.npz") as data:
        for i, file in enumerate(files):
            with Image.open(file) as image:
                assert np.array_equal(np.asarray(image), data["x"][i, 0])
            assert text_of(file)["index"] == str(i)


def test_pixels_below_their_dtype_are_stretched_only_in_pictures():
    from sfumato.cli.write import _full_scale

    source = sf.data.open("digits")
    spec = sf.data.DataSpec.fit(source)
    x = np.array([[[0, 8], [4, 16]]], dtype=np.uint8)
    assert _full_scale(x, spec).tolist() == [[[0, 128], [64, 255]]]


def test_sixteen_bit_colours_are_whole_in_arrays(call, models):
    assert call("sample", models["colour16"], "-n", 2, "-o", "x.npy", *QUICK)[0] == 0
    assert np.load("x.npy").dtype == np.uint16
    assert call("sample", models["colour16"], "-n", 2, "-o", "pictures/", *QUICK)[0] == 0
    assert "8 of 16 bits" in text_of("pictures/00000.png")["depth"]


def test_other_data_are_drawn_as_a_picture_or_written_one_array_a_file(call, models):
    assert call("sample", models["points"], "-n", 40, "-o", "points.png", *QUICK)[0] == 0
    with Image.open("points.png") as image:
        assert len(image.getcolors(1 << 20)) > 5
    assert call("sample", models["points"], "-n", 2, "-o", "folder/", *QUICK)[0] == 0
    assert np.load("folder/00001.npy").shape == (2,)


def test_without_a_name_a_free_one_is_taken_and_said(call, models):
    assert "samples.npz" in call("sample", models["points"], "-n", 2, *QUICK)[1]
    assert "samples-2.npz" in call("sample", models["points"], "-n", 2, *QUICK)[1]
    assert "samples.png" in call("sample", models["images"], "-n", 3, *QUICK)[1]
    assert Path("samples.npz").exists() and Path("samples-2.npz").exists() and Path("samples.png").exists()


def test_sample_i_is_the_same_whatever_the_batch_and_the_range(call, models):
    for name, words in {"all": ["-n", 6], "small": ["-n", 6, "--batch", 2], "late": ["-n", 2, "--first", 4]}.items():
        assert call("sample", models["images"], "-o", f"{name}.npz", *words, *QUICK)[0] == 0
    x, labels = (dict(np.load(f"{name}.npz")) for name in ("all", "small")), np.load("late.npz")["labels"]
    whole, small = x
    assert np.abs(whole["x"].astype(int) - small["x"]).max() <= 1  # rounding of another batch's sums
    assert np.abs(whole["x"][4:].astype(int) - np.load("late.npz")["x"]).max() <= 1
    assert whole["labels"][4:].tolist() == labels.tolist()


def test_json_is_one_object_and_words_go_elsewhere(call, models):
    status, out, err = call("sample", models["images"], "-n", 3, "-o", "x.npz", "--json", *QUICK)
    facts = json.loads(out)
    assert status == 0 and facts["out"] == "x.npz" and facts["manifest"]["number"] == 3 and "3 samples" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--steps 0", "steps must be at least 1, not 0"),
        ("--steps -3", "steps must be at least 1, not -3"),
        ("--solver huen", "did you mean 'heun'?"),
        ("--class cat", "there is no class 'cat'; the classes are: 3, 5, 9"),
        ("-n 0", "-n must be at least 1"),
        ("--batch 0", "--batch must be at least 1"),
        ("--first -1", "--first must be at least 0"),
        ("--seed -1", "--seed must be from 0"),
        ("--guidance-interval 3 2", "needs a scale here: also set --guidance"),
        ("--guidance 2 --guidance-interval 3 2", "increasing"),
        ("--weights raw", "no raw weights"),
        ("-o picture.jpg", "end it in .png, .npz, .npy"),
        ("-o /proc/nowhere/x.png", "cannot be written"),
        ("--device gpu", "There is no device 'gpu'"),
    ],
)
def test_a_wrong_wish_is_one_sentence(refused, models, words, expected):
    assert expected in refused("sample", models["images"], *words.split())


def test_guidance_without_classes_is_one_sentence(refused, models):
    assert "no classes" in refused("sample", models["points"], "--guidance", 2)
    assert "no classes" in refused("sample", models["points"], "--class", "shoe")


def test_an_output_that_is_something_else_is_one_sentence(refused, models):
    Path("folder.png").mkdir()
    Path("file").write_text("mine")
    assert "is a file, not a folder" in refused("sample", models["points"], "-o", "file/")
    assert "cannot be written" in refused("sample", models["points"], "-o", "file/x.npz")
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("command", ["sample", "info"])
def test_what_is_no_model_is_one_sentence(refused, models, workplace, command):
    whole = models["images"].read_bytes()
    (workplace / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (workplace / "tiny.safetensors").write_bytes(whole[:50])
    (workplace / "empty").mkdir()
    (workplace / "notes.txt").write_text("some notes")
    later = whole.replace(b'\\"version\\": 2', b'\\"version\\": 9')
    assert later != whole
    (workplace / "later.safetensors").write_bytes(later)
    assert "does not exist" in refused(command, "missing.safetensors")
    assert "cut short" in refused(command, "cut.safetensors")
    assert "cut short" in refused(command, "tiny.safetensors")
    assert "without model.safetensors" in refused(command, "empty")
    assert "not a model file" in refused(command, "notes.txt")
    assert "newer version" in refused(command, "later.safetensors")


def test_a_changed_weight_is_noticed(refused, models, workplace):
    whole = bytearray(models["images"].read_bytes())
    whole[-5] ^= 1
    (workplace / "changed.safetensors").write_bytes(whole)
    assert "hash" in refused("sample", "changed.safetensors")


def test_an_interrupted_write_leaves_nothing(call, models, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    status, out, err = call("sample", models["points"], "-n", 2, "-o", "x.npz", *QUICK)
    assert status == 130 and "Interrupted" in err and not list(Path().iterdir())
