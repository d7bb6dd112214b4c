"""What a run finds by itself: said once, written down, at a price that is kept, and without a trace in the weights."""

import json

import numpy as np
import pytest
import torch

import sfumato as sf
from consoles import Heard
from fault_cases import moons
from sfumato.folder import read
from sfumato.training import checkpoint
from sfumato.training.console import Silent
from sfumato.training.health import SHARE, Health
from sfumato.training.run import Interrupted

SETTINGS = {"steps": 120, "batch": 32, "net": "tiny", "precision": "float32", "snapshots": 0, "sample_every": 0}


def test_training_is_bit_by_bit_what_it_is_without(tmp_path, monkeypatch):
    x, labels = moons(600)
    monkeypatch.setattr("sfumato.training.health.SHARE", 0.05)  # so that so short a run asks its network
    asked = []
    ask = Health._probe
    monkeypatch.setattr(Health, "_probe", lambda self, progress: (asked.append(progress.step), ask(self, progress)))
    runs = [sf.train(x, tmp_path / "with", labels=labels, console=Silent(), **{**SETTINGS, "steps": 170})]
    assert asked == [43, 102]

    def without(session):
        session.hooks[:] = [hook for hook in session.hooks if not isinstance(hook, Health)]

    how = {**SETTINGS, "steps": 170, "on_start": without}
    runs.append(sf.train(x, tmp_path / "without", labels=labels, console=Silent(), **how))
    assert asked == [43, 102]
    first, second = (checkpoint.latest(run.path)[1] for run in runs)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    told = [[(v["step"], v.get("loss"), v.get("valid_ema")) for v in read(r.path / "metrics.jsonl")] for r in runs]
    assert told[0] == told[1] and len(told[0]) == 170


def test_what_is_asked_costs_no_more_than_its_share(tmp_path, monkeypatch):
    x, labels = moons(600)
    passed = []
    predict = sf.Denoiser.predict
    monkeypatch.setattr(
        sf.Denoiser, "predict", lambda self, z, *a, **c: (passed.append(len(z)), predict(self, z, *a, **c))[1]
    )
    monkeypatch.setattr("sfumato.training.health.MOMENTS", (0.9,))
    monkeypatch.setattr("sfumato.training.health.SHARE", 0.05)
    inside = []
    ask = Health._probe

    def counted(self, progress):
        before = sum(passed)
        ask(self, progress)
        inside.append(sum(passed) - before)

    monkeypatch.setattr(Health, "_probe", counted)
    sf.train(x, tmp_path / "run", labels=labels, console=Silent(), **SETTINGS)
    # a pass forward is a third of a training sample's work; two of three calls are `predict`
    assert len(inside) == 1 and 0 < 1.5 * inside[0] / 3 <= 0.05 * 120 * 32
    assert 3 * SHARE < 0.01, "two such moments and the data stay below one in a hundred"


def test_a_fault_is_said_once_and_written_down_and_resuming_does_not_repeat_it(tmp_path):
    x, labels = moons(600)
    heard = Heard(stop=40)
    with pytest.raises(Interrupted):
        sf.train(x, tmp_path / "run", labels=labels, console=heard, lr=0.4, **SETTINGS)
    said = [line for line in heard.said if "lr-high" in line]
    assert len(said) == 2 and said[0].startswith("error lr-high") and "--lr 0.004" in said[1]
    assert "docs/faults/lr-high.md" in said[1]
    (kept,) = json.loads((tmp_path / "run/health.json").read_text())
    assert kept["code"] == "lr-high" and kept["evidence"]["lr"] == 0.4
    again = Heard()
    sf.resume(tmp_path / "run", data=x, labels=labels, console=again, steps=60)
    assert not [line for line in again.said if "lr-high" in line]
    assert len(json.loads((tmp_path / "run/health.json").read_text())) == 1
    (tmp_path / "run/health.json").write_text('[{"code": 3}]')
    with pytest.raises(sf.SfumatoError, match="health.json.* can be deleted safely"):
        sf.doctor(tmp_path / "run", data=x, labels=labels)


def test_data_are_looked_at_before_the_first_step(tmp_path):
    heard = Heard(stop=1)
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 1, 8, 8)), 60, 0).astype(np.float32)
    with pytest.raises(Interrupted):
        sf.train(x, tmp_path / "run", console=heard, **SETTINGS)
    assert sum("error identical" in line for line in heard.said) == 1
