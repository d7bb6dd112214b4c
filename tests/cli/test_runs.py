"""`runs`: what each is, the best first, and when figures are not one figure."""

import json
import shutil

import numpy as np
import pytest

import sfumato as sf
from sfumato.cli import main
from sfumato.training.console import Silent

# three numbers that are one: there is something to learn
X = np.random.default_rng(0).normal(size=(80, 1)).astype(np.float32) * np.ones(3, dtype=np.float32)
CASES = {"long": {"steps": 60}, "short": {"steps": 3}, "other": {"steps": 3, "weight": "sigmoid"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    how = {"batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent()}
    for name, changes in CASES.items():
        sf.train(X, out=str(place / name), **{**how, **changes})
    return place


def test_the_best_comes_first_and_what_differs_is_said(folder, capsys):
    assert main(["runs", str(folder / "short"), str(folder / "long")]) == 0
    said = capsys.readouterr().out
    assert said.index("long") < said.index("short") and "cannot be compared" not in said
    assert f"  steps\n    60: {folder / 'long'}\n    3: {folder / 'short'}\n" in said


def test_a_folder_of_runs_as_json(folder, capsys):
    assert main(["runs", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [run["path"].split("/")[-1] for run in facts["runs"]] == ["long", "other", "short"]
    assert facts["comparable"] is False and facts["reason"] == "they differ in weight"
    last = json.loads((folder / "long" / "metrics.jsonl").read_text().splitlines()[-1])
    assert facts["runs"][0]["validation"] == last["valid_ema"] and facts["runs"][0]["step"] == 60


def test_a_run_killed_before_its_model_was_written_is_told_from_a_finished_one(folder, tmp_path, capsys):
    """And its next command, which writes what is missing."""
    place = shutil.copytree(folder / "short", tmp_path / "killed")
    for name in ("model.safetensors", "report.json", "report.html"):
        (place / name).unlink()
    assert main(["runs", str(place), str(folder / "short")]) == 0
    first, second = capsys.readouterr().out.split("\n")[1:3]
    left = "trained, but without model.safetensors, report.json, report.html"
    assert f"{left}, which sfumato resume {place} writes" in first + second and "  finished" in first + second
    assert main(["doctor", str(place)]) == 0
    assert f"({left}, which sfumato resume {place} writes, step 3)" in capsys.readouterr().out
    sf.resume(place, X, console=Silent())
    assert main(["runs", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["missing"] == []


def test_mistakes_are_one_sentence(folder, tmp_path, capsys):
    assert main(["runs", str(tmp_path / "none")]) == 2 and "is not a folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == 2 and "holds no run" in capsys.readouterr().err


def test_runs_of_parts_that_are_not_here_are_listed(folder, tmp_path, capsys):
    """Their settings are words; only what makes a model again asks for the file that has the part."""
    place = tmp_path / "own"
    shutil.copytree(folder / "short", place)
    text = (place / "config.yaml").read_text(encoding="utf-8").replace("weight: plain", "weight: hat(width=2)")
    (place / "config.yaml").write_text(text, encoding="utf-8")
    assert main(["runs", str(place), str(folder / "short")]) == 0
    assert f"  weight\n    hat(width=2): {place}\n    plain: {folder / 'short'}\n" in capsys.readouterr().out
