"""`explain-objective MODEL --data DATA`: the board in words, as JSON and as a page, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import sfumato as sf

WORDS = ("--times", "logit-normal", "--weight", "sigmoid", "-n", "6")


@pytest.fixture
def points(workplace) -> Path:
    path = workplace / "points.npy"
    np.save(path, 100 + np.random.default_rng(1).normal(size=(90, 2)))
    return path


def test_the_board_in_words(call, models, points):
    status, out, err = call("explain-objective", models["points"], "--data", points, *WORDS)
    assert status == 0 and err == ""
    assert "The weight is that of 'sigmoid'" in out and "6 draws per level, no dropout" in out
    head = next(line for line in out.splitlines() if "loss trivial" in line)
    assert "gradient" in head and "noise scale" in head
    levels = [float(line.split()[0]) for line in out.splitlines()[out.splitlines().index(head) + 1 :][:8]]
    assert levels == sorted(levels, reverse=True)


def test_the_board_as_json_and_page(call, models, points):
    out = call("explain-objective", models["points"], "--data", points, *WORDS, "--plot", "board.html", "--json")[1]
    board = json.loads(out)["board"]
    same = sf.board(models["points"], points, samples=6, gradients=6, times="logit-normal", weight="sigmoid")
    assert board == json.loads(json.dumps(same.to_dict()))
    assert len(board["logsnr"]) == 8 and board["draws"] == 6
    assert board["total"]["model"]["value"] == pytest.approx(sum(board["contribution"]["model"]["value"]))
    assert Path("board.html").read_text(encoding="utf-8").count("<svg") == 5


def test_classes_of_the_data_are_those_of_the_model(call, models, workplace):
    draw = np.random.default_rng(0)
    np.savez("x.npz", x=draw.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8), labels=np.resize([3, 5], 20))
    assert call("explain-objective", models["images"], "--data", "x.npz", *WORDS, "--json")[0] == 0


def test_splits_and_arrays_of_the_data_are_chosen_by_their_flags(call, refused, models, points):
    x = np.load(points)
    np.savez("both.npz", x_train=x[:40], x_test=x[40:], other_test=np.concatenate([x, x]))
    words = ("explain-objective", models["points"], "--data", "both.npz", *WORDS, "--json")
    np.save("test.npy", x[40:])
    wanted = json.loads(call("explain-objective", models["points"], "--data", "test.npy", *WORDS, "--json")[1])["board"]
    assert json.loads(call(*words, "--split", "test", "--key", "x")[1])["board"] == wanted
    assert "has no split 'val'" in refused(*words[:-1], "--split", "val")
    np.savez_compressed("zeros.npz", x=np.zeros((40000, 2)))
    assert "would take" in refused(*words[:3], "zeros.npz", *WORDS, "--max-gb", 1e-9)
    assert "--key needs --data" in refused("explain-objective", models["points"], "--key", "x", *WORDS)


def test_mistakes(refused, models, points):
    model = models["points"]
    assert "needs a MODEL" in refused("explain-objective", "--data", points, *WORDS)
    assert "leave out --schedule" in refused(
        "explain-objective", model, "--data", points, "--schedule", "cosine", *WORDS
    )
    assert "to which it belongs" in refused("explain-objective", model, "--labels", points, *WORDS)
    assert "samples of shape" in refused("explain-objective", models["images"], "--data", points, *WORDS)
    assert "samples, the draws per bin" in refused("explain-objective", model, "--data", points, *WORDS[:4], "-n", 1)
    assert "in .html" in refused("explain-objective", model, "--data", points, *WORDS, "--plot", "board.png")
    assert "does not exist" in refused("explain-objective", model, "--data", "nothing", *WORDS)
