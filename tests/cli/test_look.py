"""`info` and `inspect`: in words and as JSON, and what bad data gets."""

import json

import numpy as np
import pytest
from PIL import Image


def test_info_says_what_the_model_is(call, models):
    status, out, err = call("info", models["images"])
    assert status == 0 and err == ""
    for word in ["UNet", "parameters", "velocity", "Flow", "uint8", "1 x 8 x 8", "mean", "3 classes", "sfumato sample"]:
        assert word in out, word


def test_info_in_json_is_the_contract(call, models):
    facts = json.loads(call("info", models["points"], "--json")[1])
    assert facts["spec"]["dtype"] == "float64" and facts["net"]["name"] == "MLP" and facts["parameters"] > 1000


def test_the_command_that_info_names_works(call, models):
    line = next(line for line in call("info", models["images"])[1].splitlines() if "sfumato sample" in line)
    words = line.split()[1:]
    assert call(*words, "--steps", 1)[0] == 0


def test_inspect_counts_and_names(call, workplace):
    for name, value in (("dark", 10), ("light", 200)):
        (workplace / "set" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((9, 9), value + i, np.uint8)).save(workplace / "set" / name / f"{i}.png")
    (workplace / "set" / "dark" / "torn.png").write_bytes(b"\x89PNG\r\n")
    (workplace / "set" / "notes.txt").write_text("notes")
    status, out, err = call("inspect", "set")
    assert status == 0 and err == ""
    words = ["12 samples of 1 x 9 x 9", "2 classes", "dark", "light", "torn.png", "notes.txt", "2 files are skipped"]
    for word in words:
        assert word in out, word
    facts = json.loads(call("inspect", "set", "--json")[1])
    assert facts["classes"] == {"dark": 6, "light": 6} and len(facts["skipped"]) == 2


def test_inspect_takes_labels_from_a_file(call, workplace):
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    (workplace / "y.txt").write_text("\n".join(["up", "down"] * 10))
    np.save("y.npy", np.resize([4, 7], 20))
    assert json.loads(call("inspect", "x.npy", "--labels", "y.txt", "--json")[1])["classes"] == {"down": 10, "up": 10}
    assert json.loads(call("inspect", "x.npy", "--labels", "y.npy", "--json")[1])["classes"] == {"4": 10, "7": 10}


@pytest.mark.parametrize("command", [("inspect",), ("train", "--steps", 1)])
def test_bad_data_is_one_sentence(refused, workplace, command):
    command, *rest = command
    (workplace / "empty").mkdir()
    (workplace / "torn").mkdir()
    (workplace / "torn" / "a.png").write_bytes(b"\x89PNG\r\n")
    np.save("holes.npy", np.array([[1.0, np.inf], [2.0, 3.0]]))
    np.save("x.npy", np.ones((20, 3)))
    (workplace / "y.txt").write_text("a\nb\nc\n")
    (workplace / "half.npy").write_bytes((workplace / "x.npy").read_bytes()[:200])
    assert "does not exist" in refused(command, "missing/", *rest)
    assert "did you mean the built-in set 'fashion'" in refused(command, "fashon", *rest)
    assert "empty" in refused(command, "empty", *rest)
    assert "a.png" in refused(command, "torn", *rest)
    assert "1 value that is infinite" in refused(command, "holes.npy", *rest)
    assert "half.npy" in refused(command, "half.npy", *rest)
    assert "3 labels for 20 samples" in refused(command, "x.npy", "--labels", "y.txt", *rest)
    assert "z.txt" in refused(command, "x.npy", "--labels", "z.txt", *rest)


def splits_of_arrays(path):
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"{split}_images"] = draw.integers(0, 255, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_other"] = draw.integers(0, 255, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(path, **arrays)
    return arrays


def test_every_command_decides_alike(call, workplace, refused):
    """inspect, plan, train, the folder of the run, resume and what asks for the data of a run."""
    arrays = splits_of_arrays("a.npz")
    how = ["--split", "test", "--key", "other"]
    few = ["--steps", 4, "--batch", 8, "--net", "tiny", "--snapshots", 0, "--precision", "float32"]
    seen = json.loads(call("inspect", "a.npz", *how, "--json")[1])
    wanted = arrays["test_other"]
    assert seen["samples"] == 20 and seen["classes"] == {"0": 10, "1": 10} and seen["mean"] == [wanted.mean()]
    assert json.loads(call("plan", "a.npz", *how, *few, "--json")[1])["facts"]["samples"] == 20
    status, _, err = call("train", "a.npz", *how, *few, "-o", "run")
    assert status == 0, err
    for note in (note for note in seen["notes"] if "read" in note or "samples are" in note):
        assert note in err
    assert {"split: test", "key: other"} <= set((workplace / "run" / "config.yaml").read_text().splitlines())
    status, _, err = call("resume", "run", "--steps", 6)
    assert status == 0, err
    for command in (["doctor", "run"], ["doctor", "run", "--data", "a.npz", *how], ["memorization", "run", "-n", 8],
                    ["likelihood", "run", "a.npz", *how, "-n", 2, "--steps", 2]):  # fmt: skip
        status, _, err = call(*command)
        assert status == 0, (command, err)
    assert "has no split 'val'" in refused("likelihood", "run", "a.npz", "--split", "val")


@pytest.mark.parametrize(("shape", "size"), [((8, 8, 3), (3, 2)), ((300, 200), (3, 2)), ((3, 40), (3, 2))])
def test_inspect_draws_three_samples_of_each_class(call, workplace, shape, size):
    """A row for each class, of which one has a single sample; large pictures are reduced."""
    draw = np.random.default_rng(0)
    dtype = float if shape == (3, 40) else np.uint8
    x = draw.integers(0, 255, (17, *shape)).astype(dtype)
    x[16] = 255
    np.savez("a.npz", x=x, y=["many"] * 16 + ["one"])
    status, out, err = call("inspect", "a.npz", "-o", "look.png")
    assert status == 0 and "look.png: three samples of each class." in out and err == ""
    with Image.open("look.png") as image:
        seen = np.asarray(image).astype(int)
    assert seen.shape[0] < 400 and seen.shape[1] < 900
    right = seen[:, -seen.shape[1] // 6 :]
    top, bottom = right[: len(right) // 2], right[len(right) // 2 + 4 :]
    assert (top < 250).any() and (bottom == 255).all()  # the third place of the class with one sample is paper
    assert json.loads(call("inspect", "a.npz", "-o", "look.png", "--json")[1])["out"] == "look.png"


def test_inspect_draws_points_and_samples_without_classes(call, workplace, refused):
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(50, 2)), y=np.arange(50) % 2)
    np.save("grey.npy", draw.integers(0, 255, (50, 8, 8), dtype=np.uint8))
    for name in ("points.npz", "grey.npy"):
        assert "look.png: some of the samples." in call("inspect", name, "-o", "look.png")[1]
        with Image.open("look.png") as image:
            assert len(np.unique(np.asarray(image))) > 10
    assert "end it in .png" in refused("inspect", "grey.npy", "-o", "look.txt")


def test_inspect_draws_by_any_class_and_fields_beside_their_samples(call, workplace):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 255, (20, 1, 16, 16), dtype=np.uint8)
    np.savez("a.npz", x=x, place=np.resize(["sea", "land"], 20))
    assert "look.png: three samples of each class." in call("inspect", "a.npz", "-o", "look.png")[1]
    np.savez("b.npz", x=x, mask=255 - x)
    assert "both.png: some of the samples, beside mask." in call("inspect", "b.npz", "-o", "both.png")[1]
    with Image.open("both.png") as image:
        seen = np.asarray(image.convert("L")).astype(int)
    side = (seen.shape[1] - 16) // 2
    masks, samples = seen[28 : 28 + 64, 2 : 2 + 64], seen[28 : 28 + 64, side + 18 : side + 18 + 64]
    assert np.array_equal(masks, 255 - samples) and samples.std() > 10
