"""What a run will take: sums that hold exactly, and figures against what a real run leaves and holds."""

import dataclasses
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.training.config import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.forecast import Costs, _sampling

SMALL = {"net": "tiny", "batch": 16, "steps": 24, "precision": "float32"}
X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


def priced(config: TrainConfig, **changes) -> Costs:
    """Numbers that are easy to add up: a step takes a second."""
    return Costs(**{"config": config, "first": [4.0, 3.0], "warm": [1.0] * 20, **changes})


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 100, "batch": 10, "snapshots": 0, "sample_every": 0, **changes})


def test_the_loop_is_its_steps_and_what_is_between_them():
    assert priced(settings()).loop(100, 1.0)["steps"] == 7 + 98
    assert priced(settings()).loop(1, 1.0)["steps"] == 4  # fewer steps than are slow
    one = {"averages": 2.0, "grids": 5.0, "checkpoints": 3.0}
    parts = priced(settings(snapshots=8, sample_every=40, checkpoint_every=0.5), one=one).loop(100, 1.0)
    # grids at 40 and 80, as the one at the end belongs to the end; checkpoints in 100 seconds
    assert parts == {"steps": 105, "validation": 0, "averages": 16, "grids": 10, "checkpoints": 9}
    # 1.25 % of 1,000 samples is 12: four times 2 samples of work, and gradients of 5 on one of them
    parts = priced(settings(), one={"validation": 0.5}, work=(2.0, 5.0)).loop(100, 1.0)
    assert parts["validation"] == 0.5 * (4 * 2 + 5)
    assert priced(settings(), one={"validation": 0.5}, work=(90.0, 0.0)).loop(100, 1.0)["validation"] == 45  # the last


@pytest.mark.parametrize("minutes", [0.2, 1.0, 10.0])
def test_a_budget_in_minutes_is_the_same_sum_the_other_way_round(minutes):
    config = settings(steps=None, minutes=minutes, snapshots=4, sample_every=7)
    one = priced(config, one={"averages": 0.5, "grids": 2.0, "validation": 0.2}, work=(2.0, 5.0))
    steps = one.steps(0.1)
    whole, less = (math.fsum(one.loop(n, 0.1).values()) for n in (steps, steps - 1))
    assert whole >= 60 * minutes > less
    assert priced(settings()).steps(0.1) == 100


def test_held_up_steps_do_not_count():
    step = priced(settings(), warm=[1.0] * 17 + [0.9, 1.1, 60.0]).step
    assert step.value == 1.0 and step.low == 1.0 and step.high < 1.1
    assert priced(settings(), warm=[float(i) for i in range(21)]).step == (10.0, 2.0, 18.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(forecast, folder of the real run, largest memory of its process) of one small run, each in a fresh process."""
    place = tmp_path_factory.mktemp("pair")
    np.save(place / "x.npy", X)
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    code = (
        "import sys\nfrom sfumato.cli import main\nfrom sfumato.machine import peak_memory\n"
        "assert main(sys.argv[1:]) == 0\nprint(peak_memory())"
    )
    command = [sys.executable, "-c", code, "train", str(place / "x.npy"), "--out", str(place / "run"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    before = set(place.iterdir())
    plan = [sys.executable, "-m", "sfumato.cli", "plan", str(place / "x.npy"), *words, "--json"]
    planned = subprocess.run(plan, capture_output=True, text=True, timeout=200)
    assert planned.returncode == 0, planned.stderr
    assert set(place.iterdir()) == before, "a forecast leaves nothing"
    return json.loads(planned.stdout), place / "run", int(done.stdout.split()[-1])


def test_parameters_and_settings_are_those_of_the_run(pair):
    found, run, _ = pair
    denoiser = sf.load(run)
    assert found["facts"]["parameters"] == sum(p.numel() for p in denoiser.parameters())
    assert found["facts"]["network"] == type(denoiser.net).__name__ and found["facts"]["shape"] == [3]
    assert found["facts"]["flops"] == sf.nets.flops(denoiser.net) > 2 * 256 * 256
    assert found["config"]["steps"] == 24 and found["config"]["data"].endswith("x.npy")
    assert (found["facts"]["train"] + found["facts"]["holdout"], found["facts"]["micro"]) == (300, 16)


def test_memory_is_within_15_percent(pair):
    found, _, held = pair
    assert found["memory"]["train"] == pytest.approx(held, rel=0.15)
    assert found["memory"]["free"] > 0


def test_disk_is_what_the_run_left(pair):
    found, run, _ = pair

    def size(*files: Path) -> int:
        return sum(path.stat().st_size for path in files)

    disk = found["disk"]
    assert disk["checkpoints"] == pytest.approx(size(*run.glob("checkpoints/*")), rel=0.001)
    assert disk["model"] == pytest.approx(size(run / "model.safetensors"), rel=0.01)
    assert disk["averages"] == pytest.approx(size(*run.glob("averages/*")), rel=0.001)
    assert disk["log"] == pytest.approx(size(run / "metrics.jsonl"), rel=0.2)
    assert disk["total"] == pytest.approx(size(*(p for p in run.rglob("*") if p.is_file())), rel=0.03)
    assert disk["total"] == sum(number for name, number in disk.items() if name not in ("total", "free"))


def test_times_add_up(pair):
    found, _, _ = pair
    for each in (found["step"], found["total"]):
        assert 0 < each["low"] <= each["value"] <= each["high"]
    assert found["total"]["value"] == pytest.approx(math.fsum(found["parts"].values()))
    assert found["steps"]["value"] == 24 and found["fits"] is True
    assert found["epochs"] == pytest.approx(24 * 16 / found["facts"]["train"])


def test_data_in_memory_of_any_kind_and_nothing_changed(tmp_path, monkeypatch):
    """uint16 images with named classes; files, random numbers and threads are what they were."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = torch.randint(0, 60000, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    torch.manual_seed(0)
    state = lambda: (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: E731
    before, threads = state(), torch.get_num_threads()
    found = sf.forecast((x, ["cat", "dog"] * 20), threads=1, **{**SMALL, "minutes": 0.05, "steps": None})
    assert found.facts["classes"] == 2 and found.facts["dtype"] == "uint16" and found.facts["samples"] == 40
    assert found.sampling["number"] == 20 and found.steps.low <= found.steps.value <= found.steps.high
    assert found.total.value > 3 and found.facts["threads"] == 1
    assert state() == before and torch.get_num_threads() == threads
    assert not list(tmp_path.glob("sfumato-*"))


def test_what_training_refuses_is_refused():
    for given, words in (
        ({"data": "nowhere.npy"}, "does not exist"),
        ({"data": X, "labels": [1, 2]}, "2 labels for 300 samples"),
        ({"data": X, "stepz": 3}, "did you mean 'steps'"),
        ({"data": X, "net": "huge"}, "net cannot be"),
        ({"data": X, "device": "cuda:77"}, "GPU"),
    ):
        with pytest.raises(sf.SfumatoError, match=words):
            sf.forecast(**{**SMALL, **given})


@sf.register("network", "hungry")
class Hungry(nn.Module):
    """A network for which memory suffices for `most` samples at a time."""

    def __init__(self, most: int = 4) -> None:
        super().__init__()
        self.linear, self.most = nn.Linear(3, 3), most

    def forward(self, x, noise_level):
        if torch.is_grad_enabled() and len(x) > self.most:
            raise MemoryError
        return self.linear(x)


def test_halved_parts_and_whether_memory_and_disk_suffice():
    found = sf.forecast(X, **{**SMALL, "net": "hungry(most=4)"})
    assert found.facts["micro"] == 4
    held, disk = found.memory, found.disk
    assert found.fits is True
    assert dataclasses.replace(found, memory={**held, "free": held["train"] - 1}).fits is False
    assert dataclasses.replace(found, disk={**disk, "free": disk["total"] - 1}).fits is False
    assert dataclasses.replace(found, memory={**held, "device_train": 2, "device_free": 1}).fits is False
    assert dataclasses.replace(found, memory={**held, "device_train": 1, "device_free": 2}).fits is True


def test_too_little_memory_is_one_sentence():
    with pytest.raises(sf.SfumatoError, match="even for one sample at a time"):
        sf.forecast(X, **{**SMALL, "net": "hungry(most=0)"})


def test_an_autoencoder_is_forecast(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    how = {"loss": "autoencoding", "steps": 24, "batch": 8, "precision": "float32"}
    found = sf.forecast(images, **how)
    assert found.sampling["number"] == 0 and found.total.value > 0
    run = sf.train(images, tmp_path / "run", console=Silent(), **how)
    whole = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    assert found.disk["total"] == pytest.approx(whole, rel=0.1)
    files = sorted(run.path.rglob("*"))
    latent = sf.forecast(images, autoencoder=str(run.path), reconstruction=0, **{**how, "loss": "auto"})
    assert latent.before == () and latent.fits and latent.facts["flops"] and sorted(run.path.rglob("*")) == files


def test_a_student_with_classes_is_timed_without_guidance() -> None:
    """Which is in its weights."""
    torch.manual_seed(0)
    teacher = sf.Denoiser(sf.nets.MLP(2, 8, 1, classes=2), sf.Gaussian("flow", target="F"))
    for best, steps in ((sf.FlowMap.student(teacher, (2, 1)), 2), (teacher, 20)):
        session: Any = SimpleNamespace(
            state=SimpleNamespace(best=best), source=SimpleNamespace(classes=("a", "b")),
            config=SimpleNamespace(guidance=1.0),
        )  # fmt: skip
        found = _sampling(session)
        assert (found["number"], found["steps"]) == (20, steps)
