"""What a run will take: sums that hold exactly, and a calibration against what a real run leaves and holds."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.machine import memory
from sfumato.training import costs, occasions
from sfumato.training.config import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.costs import Costs, Snapshots, Twice

SMALL = {"net": "tiny", "batch": 16, "steps": 24, "precision": "float32"}
X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
ONE = {
    "checkpoint": 100, "model": 30, "snapshot": 7, "change": 4, "copies": 6, "grid": 4, "last_grid": 5, "line": 2,
    "validation_line": 20, "report": 9, "settings": 3,
}  # fmt: skip


def priced(**changes) -> Costs:
    """Numbers that are easy to add up: a step takes a second."""
    known = {
        "start": 5.0, "first": [4.0, 3.0], "steps": [1.0] * 20, "losses": Twice(0.0, 0.0), "gradients": 0.0,
        "work": (0.0, 0.0), "grid": Twice(0.0, 0.0), "snapshots": Snapshots(0.0, 0.0, 0.0, 8),
        "checkpoint": 0.0, "end": 6.0, "disk": ONE,
    }  # fmt: skip
    return Costs(**{**known, **changes})


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 100, "batch": 10, "snapshots": 0, "sample_every": 0, **changes})


def test_the_loop_is_its_steps_and_what_is_between_them():
    assert costs.loop(priced(), settings(), 100, 1.0)[0] == 7 + 98
    assert costs.loop(priced(), settings(steps=1), 1, 1.0)[0] == 4  # fewer steps than are slow
    chain = Snapshots(2.0, 3.0, 0.5, 4)  # 2, 3, 3.5, 4, and again
    seconds, parts = costs.loop(priced(snapshots=chain), settings(snapshots=8), 100, 1.0)
    assert seconds == 105 + 25 and parts["averages"] == 25 and math.fsum(parts.values()) == seconds
    parts = costs.loop(priced(grid=Twice(5.0, 3.0)), settings(sample_every=40), 100, 1.0)[1]
    assert parts["grids"] == 5 + 3  # at 40 and 80; the one at the end belongs to the end
    parts = costs.loop(priced(checkpoint=2.0), settings(checkpoint_every=0.5), 100, 1.0)[1]
    assert parts["checkpoints"] == 3 * 2  # in 105 seconds
    # 1 % of 1,000 samples is 10: five times 2 samples of work; gradients twice, on two of the five
    parts = costs.loop(priced(losses=Twice(2.0, 1.0), gradients=3.0, work=(2.0, 5.0)), settings(), 100, 1.0)[1]
    often, seldom, depth = occasions.validations(2.0, 5.0, 1000.0)
    assert (often, seldom, depth) == (4, 1, 1) and parts["validation"] == 2 + 3 + 3


@pytest.mark.parametrize("minutes", [0.2, 1.0, 10.0])
def test_a_budget_in_minutes_is_the_same_sum_the_other_way_round(minutes):
    parts = {"snapshots": Snapshots(0.5, 0.6, 0.1, 8), "grid": Twice(2.0, 1.0), "losses": Twice(1.0, 0.5)}
    one = priced(**parts, gradients=0.7, work=(2.0, 5.0))
    config = settings(steps=None, minutes=minutes, snapshots=4, sample_every=None)
    steps = costs.steps_of(one, config, 0.1)
    assert costs.loop(one, config, steps, 0.1)[0] >= 60 * minutes > costs.loop(one, config, steps - 1, 0.1)[0]
    assert costs.steps_of(one, settings(), 0.1) == 100


def test_held_up_steps_do_not_count_and_the_interval_is_that_of_the_deciles():
    step = costs.step_seconds([1.0] * 17 + [0.9, 1.1, 60.0])
    assert step.value == pytest.approx(1.0, abs=0.01) and step.low <= step.value <= step.high == 1.0
    spread = costs.step_seconds([float(i) for i in range(1, 21)])
    assert (spread.value, spread.low, spread.high) == (10.5, 3.0, 18.0)


def test_the_folder_is_the_sum_of_its_files():
    parts = costs.disk(priced(), settings(snapshots=8, sample_every=40), 100, 105.0)
    assert parts == {
        "checkpoints": 100, "model": 30, "averages": 7 + 7 * 4, "samples": 13 + 6, "log": 200,
        "report": 9 + round(13 * 4 / 3), "settings": 3,
    }  # fmt: skip
    assert costs.disk(priced(), settings(checkpoint_every=1), 100, 105.0)["checkpoints"] == 200  # the last two are kept
    assert costs.disk(priced(), settings(snapshots=10), 100, 105.0)["averages"] == 2 * 7 + 8 * 4


def test_occasions_are_those_of_the_loop(tmp_path):
    """Counted on a run."""
    config = {**SMALL, "steps": 60, "snapshots": 5, "sample_every": 25}
    run = sf.train(X, out=str(tmp_path / "run"), console=Silent(), **config)
    whole, count = run.config, 60
    assert len(list((run.path / "averages").iterdir())) == occasions.snapshots(whole, count)
    assert len(list((run.path / "samples").iterdir())) == occasions.grids(whole, count) + 1
    scored = sum("valid_raw" in line for line in run.metrics)
    cost = 3 * 18 / 3  # two draws a bin: two sets of weights and training samples, forward alone
    often, seldom, _ = occasions.validations(cost, 0.0, 60.0 * 16)
    assert scored == max(1, often) == 1 and seldom == 0
    logged = sum("loss" in line for line in run.metrics)
    assert logged == count // occasions.log_every(whole)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(forecast, folder of the real run, largest memory of its process) of one small run."""
    place = tmp_path_factory.mktemp("pair")
    np.save(place / "x.npy", X)
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    code = (
        "import sys\nfrom sfumato.cli import main\nfrom sfumato.machine.memory import held\n"
        "assert main(sys.argv[1:]) == 0\nprint(held())"
    )
    command = [sys.executable, "-c", code, "train", str(place / "x.npy"), "--out", str(place / "run"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    before = set(place.iterdir())
    found = sf.forecast(place / "x.npy", out=place / "elsewhere", **SMALL)
    assert set(place.iterdir()) == before, "a forecast leaves nothing"
    return found, place / "run", int(done.stdout.split()[-1])


def test_parameters_and_settings_are_those_of_the_run(pair):
    found, run, _ = pair
    denoiser = sf.load(run)
    assert found.facts["parameters"] == sum(p.numel() for p in denoiser.parameters())
    assert found.facts["network"] == type(denoiser.net).__name__ and found.facts["shape"] == [3]
    assert found.config.steps == 24 and found.config.data.endswith("x.npy") and found.config.out.endswith("elsewhere")
    assert (found.facts["train"] + found.facts["holdout"], found.facts["micro"]) == (300, 16)


def test_memory_is_within_15_percent(pair):
    found, _, held = pair
    assert found.memory["train"] == pytest.approx(held, rel=0.15)
    assert 0 < found.memory["sample"] < 1.15 * held and found.memory["free"] > 0


def test_disk_is_what_the_run_left(pair):
    found, run, _ = pair

    def size(name: str) -> int:
        path = run / name
        return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir())

    assert found.disk["checkpoints"] == pytest.approx(size("checkpoints"), rel=0.001)
    assert found.disk["model"] == pytest.approx(size("model.safetensors"), rel=0.01)
    assert found.disk["averages"] == pytest.approx(size("averages"), rel=0.001)
    assert found.disk["log"] == pytest.approx(size("metrics.jsonl"), rel=0.2)
    whole = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    parts = sum(number for name, number in found.disk.items() if name not in ("total", "free"))
    assert found.disk["total"] == parts == pytest.approx(whole, rel=0.03)


def test_times_add_up_and_everything_is_plain(pair):
    found, _, _ = pair
    for each in (found.step, found.thousand, found.total):
        assert 0 < each.low <= each.value <= each.high
    whole = math.fsum(found.loop.values())
    assert found.total.value == pytest.approx(found.start + whole + found.end)
    assert found.steps.value == 24 and found.epochs == pytest.approx(24 * 16 / found.facts["train"])
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["fits"] is True and set(plain["total"]) == {"value", "low", "high"}


def test_data_in_memory_of_any_kind():
    """uint16 images with named classes, and labels beside a path, reach the other process as they are."""
    x = torch.randint(0, 60000, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    names = ["cat", "dog"] * 20
    found = sf.forecast((x, names), **{**SMALL, "minutes": 0.05, "steps": None})
    assert found.facts["classes"] == 2 and found.facts["dtype"] == "uint16" and found.facts["samples"] == 40
    assert found.sampling["number"] == 20 and found.steps.low <= found.steps.value <= found.steps.high
    assert found.total.value > 3


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


def test_memory_that_is_not_there_is_an_error_that_is_caught():
    """Beyond the limit torch's allocator raises what the loop answers by halving its parts."""
    code = """
import torch
from sfumato.machine import memory
from sfumato.machine.parts import out_of_memory
memory._SHARE, memory.available = 1.0, lambda: 2.0**28
kept = []
try:
    with memory.limited():
        for _ in range(1000):
            kept.append(torch.ones(2**24))
except RuntimeError as error:
    assert out_of_memory(error)
    print(len(kept))
kept += [torch.ones(2**24) for _ in range(8)]  # after the block there is no limit
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    if memory.held() is not None and Path("/proc/self/status").exists():
        assert 1 <= int(done.stdout) <= 4 + (os.cpu_count() or 1)


def test_fits_asks_memory_and_disk(pair):
    found, _, _ = pair
    held, disk = found.memory, found.disk
    assert dataclasses.replace(found, memory={**held, "free": held["train"] - 1}).fits is False
    assert dataclasses.replace(found, disk={**disk, "free": disk["total"] - 1}).fits is False
    assert dataclasses.replace(found, memory={**held, "device_train": 2, "device_free": 1}).fits is False
    assert dataclasses.replace(found, memory={**held, "train": None, "sample": None}).fits is None
