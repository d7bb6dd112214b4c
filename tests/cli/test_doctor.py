"""`sfumato doctor`: what it says, its status, and what it gets that is no run."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from fault_cases import moons
from sfumato.cli import doctor
from sfumato.diagnostics.checks import CODES
from sfumato.training import checkpoint
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/faults"
SETTINGS = {"steps": 100, "batch": 32, "net": "tiny", "precision": "float32", "snapshots": 0, "sample_every": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run, beside the file of its data."""
    folder = tmp_path_factory.mktemp("doctor")
    x, labels = moons(600)
    np.savez(folder / "moons.npz", x=x, labels=labels)
    sf.train(folder / "moons.npz", folder / "run", console=Silent(), **SETTINGS)
    return folder / "run"


def test_a_healthy_run(call, run):
    status, out, err = call("doctor", run)
    assert status == 0 and "(finished, step 100): nothing found (all " in out and err == ""
    assert "Looked for: weights-not-finite, double-normalised, range" in out and "Not looked for" not in out
    before = sorted(run.rglob("*"))
    status, out, _ = call("doctor", run, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["healthy"] and not facts["unchecked"] and sorted(run.rglob("*")) == before


def test_a_fault_has_status_1(call, run, tmp_path):
    x, labels = moons(600)
    sf.train(x, tmp_path / "fast", labels=labels, console=Silent(), lr=0.4, **SETTINGS)
    status, out, _ = call("doctor", tmp_path / "fast")
    assert status == 1 and "error lr-high: " in out and "docs/faults/lr-high.md" in out
    assert "Not looked for, since the data were in memory (give --data): " in out
    np.savez(tmp_path / "loud.npz", x=255 * x, labels=labels)
    status, out, _ = call("doctor", run / "model.safetensors", "--data", tmp_path / "loud.npz")
    assert status == 1 and "as if it had been multiplied by 255" in out and "a file alone has no log" in out


def test_runs_that_are_not_whole(call, run, tmp_path):
    """Stopped before the first step; without a model, or checkpoints, or data; with a log that was cut."""

    class Stop(Silent):
        def __call__(self, progress):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        sf.train(run.parent / "moons.npz", tmp_path / "stopped", console=Stop(), **SETTINGS)
    out = call("doctor", tmp_path / "stopped")[1]
    assert "(not finished, step 1): nothing found" in out
    assert "since the network has hardly learned in 1 step: " in out
    other = tmp_path / "part"
    shutil.copytree(run, other)
    (other / "model.safetensors").unlink()
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')
    assert call("doctor", other)[0] == 0
    (other / "config.yaml").unlink()
    assert call("doctor", other)[0] == 0
    for path in checkpoint.found(other):
        path.write_bytes(path.read_bytes()[:100])
    status, _, err = call("doctor", other)
    assert status == 2 and "no checkpoint that can be read" in err and err.count("\n") == 1


def test_data_that_moved_away(call, run, tmp_path):
    folder = tmp_path / "away"
    folder.mkdir()
    x, labels = moons(600)
    np.savez(folder / "moons.npz", x=x, labels=labels)
    sf.train(folder / "moons.npz", folder / "run", console=Silent(), **{**SETTINGS, "steps": 5})
    (folder / "moons.npz").unlink()
    status, out, _ = call("doctor", folder / "run")
    assert status == 0 and "Not looked for, since the data cannot be read" in out and "frozen" in out


def test_what_is_no_run(refused, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no")
    assert "does not exist" in refused("doctor", tmp_path / "none")
    assert "give a run folder or a model file" in refused("doctor", tmp_path / "empty")
    refused("doctor", tmp_path / "text.safetensors")
    np.save(tmp_path / "other.npy", np.zeros((20, 3), np.float32))
    assert "samples of shape (3,)" in refused("doctor", run, "--data", tmp_path / "other.npy")
    assert "does not exist" in refused("doctor", run, "--data", "nothing.npy")
    assert "--data" in refused("doctor", run, "--dat", "x")


def test_the_page_of_a_code(call, refused):
    status, out, err = call("doctor", "--explain", "lr-high")
    assert status == 0 and err == "" and out == (PAGES / "lr-high.md").read_text(encoding="utf-8")
    facts = json.loads(call("doctor", "--explain", "lr-high", "--json")[1])
    assert facts["code"] == "lr-high" and facts["page"].startswith("# lr-high: ")
    assert "did you mean 'lr-high'?" in refused("doctor", "--explain", "lr_hihg")
    assert "There is no fault with the code 'README': known are axes, clipped" in refused(
        "doctor", "--explain", "README"
    )
    assert "needs RUN" in refused("doctor")


def test_the_pages_are_in_the_package_that_is_installed(tmp_path, monkeypatch):
    """A wheel holds docs/faults as sfumato/faults, where they are found before those of a checkout."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    held = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert held == {"docs/faults": "sfumato/faults"}
    shutil.copytree(PAGES, tmp_path / held["docs/faults"])
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path / "sfumato")
    for code in CODES:
        assert doctor.page(code).startswith(f"# {code}: {CODES[code]}\n")


def test_a_loop_of_ones_own():
    with pytest.raises(sf.SfumatoError, match="a denoiser, a model file or a run, not an int"):
        sf.doctor(3)
    net = sf.nets.MLP(2, width=16, depth=1)
    denoiser = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity")
    start = {name: value.clone() for name, value in net.state_dict().items()}
    lines = [{"step": i, "loss": 50.0 if i > 30 else 2.0} for i in range(60)]
    assert sf.doctor(denoiser, initial=start, log=lines, steps=60).codes == {"frozen"}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    report = sf.doctor(denoiser, initial=start, log=lines, steps=60)
    assert report.codes == {"lr-high"} and "rose to 50" in report.findings[0].what
    assert report.unchecked["sign-flipped"] == "without data: give data=..."
