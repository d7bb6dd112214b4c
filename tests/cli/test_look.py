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
    np.save("holes.npy", np.array([[1.0, np.nan], [2.0, 3.0]]))
    np.save("x.npy", np.ones((20, 3)))
    (workplace / "y.txt").write_text("a\nb\nc\n")
    (workplace / "half.npy").write_bytes((workplace / "x.npy").read_bytes()[:200])
    assert "does not exist" in refused(command, "missing/", *rest)
    assert "did you mean the built-in set 'fashion'" in refused(command, "fashon", *rest)
    assert "empty" in refused(command, "empty", *rest)
    assert "a.png" in refused(command, "torn", *rest)
    assert "NaN" in refused(command, "holes.npy", *rest)
    assert "half.npy" in refused(command, "half.npy", *rest)
    assert "3 labels for 20 samples" in refused(command, "x.npy", "--labels", "y.txt", *rest)
    assert "z.txt" in refused(command, "x.npy", "--labels", "z.txt", *rest)
