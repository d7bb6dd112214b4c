"""Compiled networks in training: the same numbers, taken when they are ready, kept where they are faster."""

import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.nets import MLP
from sfumato.training import TrainConfig, compiling
from sfumato.training.compiling import Child, Compiler, Switch
from sfumato.training.console import Silent
from sfumato.world import ALONE, World

DATA = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def test_a_switch_takes_the_other_form_for_inputs_like_the_first():
    net, calls = MLP(3), []

    def fast(x, level, label=None):
        calls.append(len(x))
        return net(x, level, label)

    switch = Switch(net)
    switch(torch.zeros(4, 3), torch.zeros(4))
    switch.take(fast)
    for size in (4, 2, 4):
        assert switch(torch.zeros(size, 3), torch.zeros(size)).shape == (size, 3)
    assert calls == [4, 4]
    switch.take(None)
    switch(torch.zeros(4, 3), torch.zeros(4))
    assert calls == [4, 4]
    assert {name.removeprefix("net.") for name in switch.state_dict()} == set(net.state_dict())


def denoiser(net):
    return sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()), "v", 1.0)


@pytest.mark.parametrize(
    ("settings", "elapsed", "expected"),
    [
        ({"minutes": 70}, 0.0, "beside"), ({"minutes": 59}, 0.0, "never"), ({"minutes": 70}, 1200.0, "never"),
        ({"steps": 10**6}, 0.0, "never"), ({"minutes": 70, "compile": "never"}, 0.0, "never"),
        ({"steps": 10, "compile": "always"}, 0.0, "before"),
    ],
)  # fmt: skip
def test_auto_asks_for_a_long_run_in_minutes(settings, elapsed, expected):
    compiler = Compiler(denoiser(MLP(3)), TrainConfig(**settings), elapsed, ALONE)
    assert (compiler.switch is not None) == (expected != "never")
    assert compiling.when(denoiser(MLP(3)), TrainConfig(**settings), elapsed) == expected


def test_an_energy_is_not_compiled():
    energy = sf.nets.build((3,), energy=True)
    assert Compiler(denoiser(energy), TrainConfig(minutes=1000), 0.0, ALONE).switch is None
    assert compiling.when(denoiser(MLP(3)), TrainConfig(minutes=1000), world=World(0, 2)) == "never"
    with pytest.raises(SfumatoError, match="cannot be compiled"):
        Compiler(denoiser(energy), TrainConfig(minutes=1000, compile="always"), 0.0, ALONE)
    with pytest.raises(SfumatoError, match="one process"):
        Compiler(denoiser(MLP(3)), TrainConfig(minutes=1000, compile="always"), 0.0, World(0, 2))


class Done:
    """A child that has worked for a while."""

    seconds, words, ready = 100.0, "no such compiler", None


@pytest.mark.parametrize(("factor", "kept"), [(0.5, True), (1.01, False)])
def test_the_faster_form_is_kept(monkeypatch, factor, kept):
    """The clock is a list of times: what is tested is the choice."""
    net = MLP(3)
    monkeypatch.setattr(compiling, "compiled", lambda net: net.__call__)
    now = [0.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: now[0])
    compiler = Compiler(denoiser(net), TrainConfig(minutes=100), 0.0, ALONE)
    compiler.model(torch.zeros(2, 3), torch.full((2,), 0.5))
    compiler._child, said = Done(), []
    for step in range(40):
        if step == 20:
            Done.ready = True
        now[0] += 20.0 if step == 21 else factor if step > 21 else 1.0
        said += filter(None, [compiler.look()])
    Done.ready = None
    assert len(said) == 1 and "20 s to load" in said[0]
    assert compiler.switch.taken == kept
    assert ("2.00 times as fast" if kept else "not faster") in said[0]


def test_a_failure_is_said_and_training_goes_on():
    compiler = Compiler(denoiser(MLP(3)), TrainConfig(minutes=100), 0.0, ALONE)
    compiler.model(torch.zeros(2, 3), torch.full((2,), 0.5))
    compiler.switch.net.config = {"name": "MLP", "args": {"size": -1}}
    compiler._child = Child(compiler.model, compiler.switch)
    compiler._child._process.wait(120)
    said = compiler.look()
    assert "could not be compiled" in said and "SfumatoError" in said
    assert compiler.look() is None and not compiler.switch.taken
    compiler.close()


def train(path, **settings):
    common = {"batch": 16, "snapshots": 0, "sample_every": 0, "precision": "float32", "holdout": 0.1}
    return sf.train(DATA, out=str(path), console=Silent(), **{**common, **settings})


@pytest.mark.slow
@needs_compiler
def test_compiled_training_is_the_same_training(tmp_path):
    runs = [train(tmp_path / how, steps=30, net="tiny", compile=how) for how in ("never", "always")]
    plain, fast = (run.denoiser.net.state_dict() for run in runs)
    assert plain.keys() == fast.keys()
    assert max(float((plain[k] - fast[k]).abs().max()) for k in plain) < 1e-4
    assert math.isclose(runs[0].metrics[-1]["valid_raw"], runs[1].metrics[-1]["valid_raw"], rel_tol=1e-4)


LOADING = """
import sys, torch, sfumato as sf
from torch._dynamo.utils import counters
from sfumato.nets import UNet
from sfumato.nets.layout import channels_last
from sfumato.training import TrainConfig
from sfumato.training.compiling import Compiler
from sfumato.world import ALONE

net = UNet((1, 8, 8), channels=(16,), blocks=1, classes=3, embed_dim=32)
channels_last(net)
model = sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()), "v", 1.0)
compiler = Compiler(model, TrainConfig(minutes=100), 0.0, ALONE)

def losses():
    label = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])
    return compiler.model(torch.zeros(8, 1, 8, 8), torch.full((8,), 0.5), label=label).v.square().sum()

plain = losses()
compiler.look()
compiler._child._process.wait(280)
assert compiler._child.ready, compiler._child.words
counters.clear()
compiler.look()
fast = losses()
fast.backward()
assert torch.allclose(plain, fast, rtol=1e-4)
compiler.close()
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
@needs_compiler
def test_a_child_compiles_what_the_run_then_loads(tmp_path):
    """Also with labels, on a U-Net. In a process of its own: pytest changes what torch's cache hashes."""
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", LOADING], env={**env, "SFUMATO_CACHE": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["2", "0"]  # forward and backward
    assert (tmp_path / "inductor").is_dir()
