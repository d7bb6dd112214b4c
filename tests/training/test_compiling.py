"""Compiled networks in training: the same numbers, the same names, code that is kept, an environment that is not."""

import dataclasses
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.nets import MLP
from sfumato.training import TrainConfig
from sfumato.training.compiling import compiled, compiling
from sfumato.training.config import from_dict
from sfumato.training.console import Silent

DATA = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def denoiser(net):
    return sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()), "v", 1.0)


def test_weights_are_shared_under_their_own_names_and_the_network_stays_plain():
    net = MLP(3)
    fast = compiled(denoiser(net), ALONE).net
    assert fast is not net and type(fast) is MLP and net._compiled_call_impl is None
    assert all(a is b for a, b in zip(fast.parameters(), net.parameters(), strict=True))
    assert list(fast.state_dict()) == list(net.state_dict())


def test_what_is_not_compiled_is_one_sentence():
    with pytest.raises(SfumatoError, match="energy cannot be compiled"):
        compiled(denoiser(sf.nets.build((3,), energy=True)), ALONE)
    with pytest.raises(SfumatoError, match="several processes"):
        compiled(denoiser(MLP(3)), World(0, 2))


def test_the_words_of_earlier_versions_are_read():
    kept = dataclasses.asdict(TrainConfig())
    for word, expected in (("auto", False), ("never", False), ("always", True), (False, False), (True, True)):
        assert from_dict({**kept, "compile": word}).compile is expected
    with pytest.raises(SfumatoError, match="compile must be true or false"):
        TrainConfig(compile="sometimes")


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its checkpoint and its config.yaml say auto, which is no change of the settings."""
    run = train(tmp_path / "run", steps=3, net="tiny")
    contract, tensors, _ = sf.training.checkpoint.latest(run.path)
    contract["config"]["compile"] = "auto"
    path = sf.training.checkpoint.found(run.path)[0]
    sf.files.write_sealed(path, dict(tensors), contract)
    settings = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(settings.replace("compile: false", "compile: auto"))
    assert not sf.resume(run.path, DATA, console=Silent(), steps=4).config.compile


def train(path, **settings):
    common = {"batch": 16, "snapshots": 0, "sample_every": 0, "precision": "float32", "holdout": 0.1}
    return sf.train(DATA, out=str(path), console=Silent(), **{**common, **settings})


@pytest.mark.parametrize("before", [None, "own"])
def test_the_environment_is_what_it_was(monkeypatch, tmp_path, before):
    place = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(place, raising=False)
    if before is not None:
        monkeypatch.setenv(place, before)
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    was = dict(os.environ)
    with pytest.raises(ZeroDivisionError), compiling(True):
        assert os.environ[place] == (before or str(tmp_path / "inductor"))
        raise ZeroDivisionError
    assert dict(os.environ) == was
    with compiling(False):
        assert dict(os.environ) == was


@pytest.mark.slow
@needs_compiler
def test_compiled_training_is_the_same_training(tmp_path, monkeypatch):
    """In parts of 16 and 4 samples."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    was = dict(os.environ)
    runs = [train(tmp_path / str(how), steps=30, net="tiny", batch=20, micro=16, compile=how) for how in (False, True)]
    assert dict(os.environ) == was
    plain, fast = (run.denoiser.net.state_dict() for run in runs)
    assert list(plain) == list(fast)
    assert max(float((plain[k] - fast[k]).abs().max()) for k in plain) < 1e-4
    assert math.isclose(runs[0].metrics[-1]["valid_raw"], runs[1].metrics[-1]["valid_raw"], rel_tol=1e-4)


TRAINING = """
import sys, numpy as np, sfumato as sf
from torch._dynamo.utils import counters
from sfumato.training.console import Silent

x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
sf.train(x, sys.argv[1], net="tiny", steps=2, batch=16, precision="float32", compile=True, console=Silent())
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
@needs_compiler
def test_a_later_run_finds_the_code_in_the_cache(tmp_path):
    """In processes of their own: pytest changes what torch's cache hashes."""
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    env["SFUMATO_CACHE"], said = str(tmp_path / "cache"), []
    for run in ("first", "second"):
        command = [sys.executable, "-c", TRAINING, str(tmp_path / run)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.split())
    assert said == [["0", "2"], ["2", "0"]]  # forward and backward
    assert (tmp_path / "cache" / "inductor").is_dir()


def test_a_compiler_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        torch._dynamo.reset()
        with pytest.raises(SfumatoError, match="cannot be compiled, leave out compile"):
            train(tmp_path / "run", steps=2, net="tiny", compile=True)
