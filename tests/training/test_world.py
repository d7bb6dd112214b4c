"""One, two and four processes are one run: torchrun, gloo, DistributedDataParallel."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sfumato as sf
from sfumato.training import checkpoint
from sfumato.training.console import Silent
from sfumato.training.folder import read
from sfumato.world import ALONE, World

# 50 steps in float64, with validation; every process keeps what it has for the test to compare
FIT = """
import sys, torch
from safetensors.torch import save_file
from sfumato import nets, noise
from sfumato.model import Denoiser
from sfumato.objectives import times, weights
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit
from sfumato.training.goal import Denoising
from sfumato.world import joined
out, micro, density = sys.argv[1], int(sys.argv[2]), sys.argv[3]
x = noise.normal(3, range(60), (5,), noise.DATA, dtype=torch.float64)
labels = torch.arange(60) % 3
torch.manual_seed(0)
model = Denoiser(nets.MLP(5, width=16, depth=2, classes=3).double(), Gaussian(Flow()), "velocity")
config = TrainConfig(steps=50, batch=16, micro=micro or None, precision="float32", optimizer="adamw")
goal = None if density == "none" else Denoising(times.NAMED[density](), weights.sigmoid(), 0)
with joined(torch.device("cpu"), 60) as world:
    state = State(model, config, goal)
    lines = [p.to_dict() for p in fit(model, x, config, labels, (x[:16], labels[:16]), state, world=world)]
    import json
    save_file(state.tensors(), f"{out}/{world.rank}.safetensors", {"lines": json.dumps(lines)})
"""


def torchrun(processes: int, *words: str, timeout: float = 240) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*start, *words], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "fit.py"
    path.write_text(FIT)
    return path


def ran(script, folder, processes, micro=0, density="none"):
    place = folder / f"{processes}-{micro}-{density}"
    place.mkdir()
    if processes == 1:
        done = subprocess.run([sys.executable, script, place, str(micro), density], capture_output=True, text=True)
    else:
        done = torchrun(processes, str(script), str(place), str(micro), density)
    assert done.returncode == 0, done.stderr[-2000:]
    from safetensors import safe_open

    with safe_open(place / "0.safetensors", "pt") as file:
        lines = json.loads(file.metadata()["lines"])
    return [load_file(place / f"{rank}.safetensors") for rank in range(processes)], lines


@pytest.mark.parametrize(
    ("processes", "micro", "density"),
    [
        (2, 0, "none"),
        (2, 4, "adaptive"),
        pytest.param(4, 0, "none", marks=pytest.mark.slow),
        pytest.param(4, 2, "none", marks=pytest.mark.slow),
        pytest.param(2, 2, "none", marks=pytest.mark.slow),
    ],
)
def test_processes_change_nothing(script, tmp_path, processes, micro, density):
    """Equal rates, samples and losses; weights, averages, optimiser within 1e-9 after 50 steps in float64."""
    (alone,), one = ran(script, tmp_path, 1, 0, density)
    many, lines = ran(script, tmp_path, processes, micro, density)
    for each in many:
        assert each.keys() == alone.keys()
        assert max(float((each[name] - alone[name]).abs().max()) for name in alone) < 1e-9
    assert [(line["lr"], line["samples"]) for line in one] == [(line["lr"], line["samples"]) for line in lines]
    for ours, theirs in zip(one, lines, strict=True):
        for name in ("loss", "grad_norm", "valid_ema"):
            assert (name in ours) == (name in theirs)
            assert name not in ours or ours[name] == pytest.approx(theirs[name], rel=1e-9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    generator = np.random.default_rng(0)
    np.savez(path, x=generator.normal(size=(80, 6)).astype(np.float32), labels=np.arange(80) % 2)
    return path


def test_a_run_of_two_processes_goes_on_in_one_and_back(data, tmp_path):
    """The command line under torchrun: one folder, one voice; its checkpoint is any number of processes'."""
    how = {"batch": 8, "net": "tiny", "precision": "float32", "optimizer": "adamw", "sample_every": 0}
    words = ["--batch", "8", "--net", "tiny", "--precision", "float32", "--optimizer", "adamw", "--sample-every", "0"]
    alone, out = tmp_path / "alone", tmp_path / "run"
    sf.train(data, alone, steps=5, console=Silent(), **how)
    for steps in (9, 12):
        sf.resume(alone, steps=steps, console=Silent())
    done = torchrun(2, "-m", "sfumato.cli", "train", str(data), "-o", str(out), *words, "--steps", "5", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in said].count("done") == 1
    sf.resume(out, steps=9, console=Silent())
    done = torchrun(2, "-m", "sfumato.cli", "resume", str(out), "--steps", "12")
    assert done.returncode == 0, done.stderr[-2000:]
    (one, ours), (two, theirs) = (checkpoint.latest(path)[:2] for path in (alone, out))
    assert one["counters"]["samples"] == two["counters"]["samples"] and ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    logs = [[(line["step"], line["lr"], line["samples"]) for line in read(p / "metrics.jsonl")] for p in (alone, out)]
    assert logs[0] == logs[1] and [step for step, _, _ in logs[0]] == list(range(1, 13))


HANG = """
import os, signal, subprocess, torch
from sfumato import nets, noise
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit
from sfumato.world import joined
torch.manual_seed(0)
model = Denoiser(nets.MLP(5, width=16, depth=2), Gaussian(Flow()), "velocity")
config = TrainConfig(steps=1000, batch=8, precision="float32")
x = noise.normal(3, range(60), (5,), noise.DATA)
try:
    with joined(torch.device("cpu"), 4) as world:
        for progress in fit(model, x, config, state=State(model, config), world=world):
            if progress.step == 3 and world.rank == 1:
                subprocess.Popen(["sh", "-c", f"sleep 12; kill -9 {os.getpid()}"])  # torchrun would give it 30 s
                os.kill(os.getpid(), signal.SIGSTOP)
except SfumatoError as error:
    print(error, flush=True)
    os._exit(2)
"""


def test_a_process_that_does_not_answer_is_named(tmp_path):
    path = tmp_path / "hang.py"
    path.write_text(HANG)
    start = time.monotonic()
    done = torchrun(2, str(path), timeout=120)
    assert done.returncode != 0
    assert "Of 2 processes process 1 (counted from 0) did not answer" in done.stdout, done.stderr[-2000:]
    assert time.monotonic() - start < 100


def test_shares_are_equal_and_in_order():
    worlds = [World(rank, 4) for rank in range(4)]
    assert [list(range(16))[world.share(16)] for world in worlds] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 14, 15],
    ]
    with pytest.raises(sf.SfumatoError, match="cannot be shared by 4 processes"):
        worlds[0].share(10)
    x = torch.arange(3)
    assert ALONE.whole(x) is x and ALONE.lead(5) == 5 and ALONE.each(5) == [5] and ALONE.any(True, x.device)
