"""`sfumato evaluate`: a run alone, metrics by name, a sweep, samples in files, and mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

import sfumato as sf
from sfumato.training import Run
from sfumato.training.console import Silent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    x = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "x.npz", x=x)
    how = {"steps": 4, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "holdout": 0.3}
    return sf.train(folder / "x.npz", folder / "run", console=Silent(), **how)


def test_a_run_folder_is_enough(run, call):
    status, out, err = call("evaluate", run.path, "--steps", 2)
    assert status == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        "kid", "precision", "recall", "density", "coverage", "marginals", "spectrum"
    ]  # fmt: skip
    assert "samples against" in lines[-1] and "(train)" in lines[-1]


def test_json_has_each_protocol(run, call):
    words = ("evaluate", run.path, "--steps", 2, "-n", 30, "--metric", "kid", "--metric", "mmd(bandwidth=3)", "--json")
    facts = json.loads(call(*words)[1])
    assert set(facts["metrics"]) == {"kid", "mmd(bandwidth=3)"}
    kid = facts["metrics"]["kid"]
    assert kid["low"] < kid["value"] < kid["high"] and kid["floor"]["stderr"] > 0 and len(kid["hash"]) == 16
    assert kid["protocol"]["features"] == "convolutions" and len(kid["protocol"]["features_hash"]) == 16
    assert facts["metrics"]["mmd(bandwidth=3)"]["protocol"]["metric"] == "MMD(bandwidth=3)"
    again = json.loads(call(*words)[1])
    assert again["metrics"] == facts["metrics"]
    raw = json.loads(call(*words, "--weights", "raw")[1])["metrics"]["kid"]
    assert raw["protocol"]["weights"] == "raw" and raw["hash"] != kid["hash"]


def test_a_sweep_prints_a_table_and_draws(run, call):
    words = ("evaluate", run.path, "-n", 30, "--metric", "kid", "--sweep", "steps=2,3", "--sweep", "solver=heun,ddim")
    status, out, err = call(*words)
    assert status == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["steps", "solver", "calls", "kid"] and [row[:3] for row in rows[1:5]] == [
        ["2", "heun", "3"], ["2", "ddim", "2"], ["3", "heun", "5"], ["3", "ddim", "3"]
    ]  # fmt: skip
    assert out.splitlines()[5].startswith("real data") and Image.open("sweep.png").size[1] > 100
    facts = json.loads(call(*words, "--json", "-o", "other.svg")[1])
    assert facts["out"] == "other.svg" and facts["points"][3]["settings"] == {"steps": 3, "solver": "ddim"}


def test_samples_in_files(run, call):
    assert call("sample", run.path, "-n", 30, "--steps", 2, "-o", "png/")[0] == 0
    words = ("evaluate", "png", "--reference", run.path.parent / "x.npz", "--metric", "kid", "--json")
    facts = json.loads(call(*words)[1])["metrics"]["kid"]
    assert facts["protocol"]["samples"] == 30 and facts["protocol"]["sampler"] == "given"


def test_metrics_with_commas_and_a_run_in_the_place_of_its_data(run, call):
    words = ("evaluate", run.path / "model.safetensors", "--steps", 2, "-n", 30, "--json")
    data = run.path.parent / "x.npz"
    plain = ("--reference", data, "--metric", "kid", "--metric", "mmd(bandwidth=3)")
    short = ("--reference", run.path, "--metric", "kid,mmd(bandwidth=3)")
    one, other = (json.loads(call(*words, *more)[1]) for more in (plain, short))
    assert one["metrics"] == other["metrics"] and other["data"] == str(data)


def test_mistakes(run, refused):
    assert "There is no metric 'kidd': did you mean 'kid'?" in refused("evaluate", run.path, "--metric", "kidd")
    assert "stepz cannot be swept" in refused("evaluate", run.path, "--sweep", "stepz=3")
    assert "write values with commas" in refused("evaluate", run.path, "--sweep", "steps=few")
    assert "give --sweep" in refused("evaluate", run.path, "-o", "sweep.png")
    assert "give --reference DATA" in refused("evaluate", run.path / "model.safetensors")
    assert "two halves of 60 need 120" in refused("evaluate", run.path, "-n", 60)
    assert "take kid" in refused("evaluate", run.path, "-n", 30, "--metric", "fd", "--steps", 2)
    assert "no set of features 'dino'" in refused("evaluate", run.path, "--features", "dino")
    assert "needs the argument 'weights'" in refused("evaluate", run.path, "--features", "inception")
    assert "end it in .png, .svg, .pdf" in refused("evaluate", run.path, "--sweep", "steps=2", "-o", "sweep.txt")
