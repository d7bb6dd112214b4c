"""Dashboards: the real ones where they are installed, and what happens where one is missing or breaks."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import sfumato as sf
from consoles import Heard
from sfumato import registry
from sfumato.errors import SfumatoError
from sfumato.folder import read
from sfumato.training import loggers
from sfumato.training.console import Silent

X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
HOW = {"steps": 6, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "console": Silent()}


def test_tensorboard_has_every_number_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = sf.train(X, out=str(tmp_path / "run"), loggers="tensorboard", **HOW)
    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    lines = [line for line in read(run.path / "metrics.jsonl") if "loss" in line]
    events = found.Scalars("loss")
    assert [event.step for event in events] == [line["samples"] for line in lines]
    assert all(math.isclose(e.value, line["loss"], rel_tol=1e-6) for e, line in zip(events, lines, strict=True))
    assert "valid_ema" in found.Tags()["scalars"] and found.Tags()["images"] == ["samples"]


def test_wandb_runs_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = sf.train(X, out=str(tmp_path / "run"), loggers="wandb", **HOW)
    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow_keeps_the_numbers(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    sf.train(X, out=str(tmp_path / "run"), loggers="mlflow", **HOW)
    (found,) = mlflow.search_runs(experiment_names=["sfumato"], output_format="list")
    assert found.data.params["batch"] == "16" and math.isfinite(found.data.metrics["valid_ema"])


TRACKED = """
import json, sys
import numpy as np
import sfumato as sf
import trackio
sf.train(np.load(sys.argv[1]), out=sys.argv[2], loggers="trackio", steps=6, batch=16, net="tiny",
         precision="float32", snapshots=0)
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("sfumato")
logs = [row for row in SQLiteStorage.get_logs("sfumato", run.name) if "loss" in row]
print(json.dumps({"name": run.name, "config": run.config, "lines": [row["loss"] for row in logs],
                  "steps": [row["steps"] for row in logs]}))
"""


def test_trackio_has_every_number_of_the_log(tmp_path):
    """In a process of its own, since it takes its folder when it is imported."""
    pytest.importorskip("trackio")
    np.save(tmp_path / "x.npy", X)
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-W", "error::UserWarning:trackio", "-c", TRACKED]
    done = subprocess.run(
        [*words, str(tmp_path / "x.npy"), str(tmp_path / "run")], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # and nothing else: what it prints itself goes to stderr
    lines = [line for line in read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert found["name"] == "run" and found["config"]["batch"] == 16
    assert found["lines"] == [line["loss"] for line in lines] and found["steps"] == [line["step"] for line in lines]
    assert "Reserved" not in done.stderr


def test_names_are_checked_before_anything_is_done(tmp_path):
    with pytest.raises(SfumatoError, match="no logger 'tensorbord': did you mean 'tensorboard'"):
        sf.train(X, out=str(tmp_path / "run"), loggers="tensorbord", **HOW)
    assert not (tmp_path / "run").exists()


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(SfumatoError, match=r"wandb is not installed.*pip install 'sfumato\[wandb\]'"):
        sf.train(X, out=str(tmp_path / "run"), loggers="wandb", **HOW)
    assert not (tmp_path / "run").exists()


def refuses(run, config):
    raise ConnectionError("nobody is logged in")


class Broken(loggers.Logger):
    def __init__(self, run, config) -> None:
        pass

    def numbers(self, values, samples):
        raise ConnectionError("the network is gone")

    def picture(self, path, samples):
        raise AssertionError("it was dropped before")

    def close(self):
        raise AssertionError("it was dropped before")


def test_dashboards_that_fail_are_reported_once_and_do_not_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._MADE["logger"], "wandb", Broken)
    monkeypatch.setitem(registry._MADE["logger"], "mlflow", refuses)
    monkeypatch.setattr(loggers, "check", lambda words: None)
    heard = Heard()
    run = sf.train(X, out=str(tmp_path / "run"), loggers="wandb, mlflow", **{**HOW, "console": heard})
    assert run.metrics[-1]["done"]
    assert [line for line in heard.said if "is switched off for this run" in line] == [
        "mlflow failed and is switched off for this run (ConnectionError: nobody is logged in).",
        "wandb failed and is switched off for this run (ConnectionError: the network is gone).",
    ]
