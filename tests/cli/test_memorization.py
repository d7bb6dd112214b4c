"""`sfumato memorization`: a run folder alone, other data, and what cannot be compared."""

import json

import numpy as np
import pytest

import sfumato as sf
from sfumato.training import Run
from sfumato.training.console import Silent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    x = np.random.default_rng(0).integers(0, 256, (90, 1, 8, 8), dtype=np.uint8)
    x[:45] = x[45:]  # everything twice, on both sides
    np.savez(folder / "x.npz", x=x)
    how = {"steps": 6, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "holdout": 0.3}
    return sf.train(folder / "x.npz", folder / "run", console=Silent(), **how)


def test_a_run_folder_is_enough(run, call):
    status, out, err = call("memorization", run.path, "-n", 20, "--steps", 2, "-o", "pairs.png")
    assert status == 0 and "No sign" in out and "LEAK" in out and "pairs.png" in out, err
    from PIL import Image

    assert Image.open("pairs.png").size[0] > 8 * 8
    status, out, _ = call("memorization", run.path, "-n", 20, "--steps", 2, "--json")
    facts = json.loads(out)
    assert facts["samples"] == 20 and facts["leaked"] > 0 and facts["train"] + facts["holdout"] == 90
    assert facts["data"].endswith("x.npz") and len(facts["nearest"]) == 8


def test_unseen_data_of_ones_own(run, call):
    np.save("unseen.npy", np.random.default_rng(1).integers(0, 256, (25, 1, 8, 8), dtype=np.uint8))
    file, data = run.path / "model.safetensors", run.path.parent / "x.npz"
    words = ("memorization", file, data, "--holdout", "unseen.npy", "-n", 10, "--steps", 2, "--json")
    facts = json.loads(call(*words)[1])
    assert facts["train"] == 90 and facts["holdout"] == 25 and facts["leaked"] == 0


def test_splits_and_arrays_of_unseen_data(run, call, refused):
    x = np.random.default_rng(1).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez("both.npz", x_train=x[:20], x_test=x[20:50], other_test=x[:, :, :4])
    file, data = run.path / "model.safetensors", run.path.parent / "x.npz"
    words = ("memorization", file, data, "--key", "x", "-n", 10, "--steps", 2, "--holdout", "both.npz")
    assert json.loads(call(*words, "--json")[1])["holdout"] == 20
    assert json.loads(call(*words, "--json", "--holdout-split", "test")[1])["holdout"] == 30
    assert "has no split 'val'" in refused(*words, "--holdout-split", "val")
    np.savez_compressed("zeros.npz", x=np.zeros((20000, 1, 8, 8), np.uint8))
    assert "zeros.npz, unpacked, would take" in refused(*words[:-1], "zeros.npz", "--max-gb", 1e-9)
    assert "--holdout-split needs --holdout" in refused("memorization", run.path, "--holdout-split", "test")


def test_mistakes(run, refused, models):
    assert "its training data are not known" in refused("memorization", run.path / "model.safetensors")
    assert "end it in .png" in refused("memorization", run.path, "-o", "pairs.jpg")
    assert "at least 2 samples" in refused("memorization", run.path, "-n", 1)
    assert "give unseen data with --holdout" in refused("memorization", models["points"], run.path.parent / "x.npz")
