"""`train`, `resume`, `demo`: from data to samples in other processes, and what an interruption leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import sfumato as sf
from sfumato import registry
from sfumato.cli.write import free
from sfumato.errors import SfumatoError
from sfumato.training import checkpoint

SMALL = ("--net", "tiny", "--batch", 8, "--precision", "float32", "--sample-every", 0)
COMMAND = [sys.executable, "-m", "sfumato.cli"]


def fresh(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=250)


def test_from_data_to_samples_in_another_process_with_the_data_gone(call, workplace):
    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (workplace / "set" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(draw.normal(level, 20, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(workplace / "set" / name / f"{i}.png")
    status, out, err = call("train", "set", "--steps", 20, "-o", "runs/x", *SMALL)
    assert status == 0, err
    assert "Done: the run is in runs/x" in out and "sfumato sample runs/x" in out
    for name in ("model.safetensors", "report.html", "metrics.jsonl", "config.yaml"):
        assert (workplace / "runs/x" / name).is_file(), name
    shutil.rmtree("set")
    shutil.move("runs/x/model.safetensors", "kept.safetensors")
    shutil.rmtree("runs")
    words = ("sample", "kept.safetensors", "-n", 4, "--class", "light", "-o", "x.npz", "--seed", 5, "--json")
    done = fresh(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["manifest"]["class"] == "light"
    assert call(*("y.npz" if word == "x.npz" else word for word in words))[0] == 0
    with np.load("x.npz") as x, np.load("y.npz") as y:
        assert x["x"].shape == (4, 1, 8, 8) and x["x"].dtype == np.uint8 and x["labels"].tolist() == [1] * 4
        assert np.array_equal(x["x"], y["x"])
    assert "2 classes: dark, light" in call("info", "kept.safetensors")[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a limit to memory is Linux's")
def test_where_memory_does_not_suffice_parts_are_halved_and_the_run_goes_on(workplace):
    """A real limit on a real process: 2,048 samples at once need more than the half gigabyte that is free."""
    code = (
        "import sys\nfrom sfumato import machine\nmachine.available = lambda: 2.0**29\n"
        "from sfumato.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = "train digits --net tiny --batch 2048 --steps 2 --snapshots 0 --precision float32 -o run --sample-every 0"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "not enough memory for 2048 samples at once" in done.stderr and Path("run/model.safetensors").exists()
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["samples"] == 2 * 2048 and np.isfinite(last["loss"])


def test_json_is_a_line_a_report_and_ends_with_done(call):
    status, out, err = call("train", "digits", "--steps", 6, "-o", "run", "--json", *SMALL)
    assert status == 0, err
    *progress, done = [json.loads(line) for line in out.splitlines()]
    assert len(progress) >= 2 and {line["event"] for line in progress} == {"progress"}
    assert progress[-1]["step"] == 6 and np.isfinite(progress[-1]["loss"])
    assert done["event"] == "done" and Path(done["model"]).is_file() and Path(done["report"]).is_file()


def test_a_run_keeps_its_settings(call, workplace):
    (workplace / "c.yaml").write_text("steps: 3\nlr: 0.001\ndata: digits\n")
    assert call("train", "--config", "c.yaml", "--lr", "0.002", "-o", "run", *SMALL)[0] == 0
    kept = yaml.safe_load((workplace / "run/config.yaml").read_text())
    assert kept["steps"] == 3 and kept["lr"] == 0.002 and kept["net"] == "tiny"
    assert call("train", "--config", "run/config.yaml", "-o", "again")[0] == 0  # what was written can be read


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "needs DATA"),
        ("digits --steps 5 --minutes 1", "not both"),
        ("digits --steps 0", "steps must be a number at least 1"),
        ("digits --net huge", "net cannot be 'huge'"),
        ("digits --schedule flwo", "did you mean 'flow'"),
        ("digits --steps 1 --device gpu", "There is no device 'gpu'"),
        ("digits --steps 1 -o /proc/nowhere", "/proc/nowhere"),
    ],
)
def test_a_wrong_setting_is_one_sentence(refused, words, expected):
    assert expected in refused("train", *words.split())


def test_what_cannot_be_resumed_is_one_sentence(refused, workplace):
    (workplace / "empty").mkdir()
    assert "missing" in refused("resume", "missing")
    assert "empty" in refused("resume", "empty")


def test_a_taken_name_gives_way_to_a_free_one(workplace):
    assert free("runs/demo") == "runs/demo"
    (workplace / "runs/demo").mkdir(parents=True)
    assert free("runs/demo") == free("runs/demo/") == "runs/demo-2"
    (workplace / "runs/demo-2").mkdir()
    assert free("runs/demo") == "runs/demo-3"


def test_the_demo_leaves_a_grid_a_report_and_words(call, workplace):
    (workplace / "runs/demo").mkdir(parents=True)
    status, out, err = call("demo", "--minutes", 0.02)
    assert status == 0, err
    assert "runs/demo already exists" in err and "runs/demo-2/report.html" in out and "sfumato sample" in out
    with Image.open("runs/demo-2/grid.png") as image:
        assert image.width > 10 * 28 and image.height > 10 * 28 and image.text["number"] == "100"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_saves_a_checkpoint_and_resume_finishes(call):
    words = ["train", "digits", "--steps", "100000", "-o", "run", *map(str, SMALL), "--json"]  # never over by itself
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if json.loads(line)["step"] >= 10:
                break
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=200)
    assert run.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert "Traceback" not in err and "checkpoint" in last and "sfumato resume run" in last
    reached = checkpoint.latest(Path("run"))[0]["counters"]["step"]
    goal = reached + 20
    assert reached >= 10
    status, out, err = call("resume", "run", "--steps", goal, "--json")
    assert status == 0, err
    steps = [json.loads(line)["step"] for line in out.splitlines() if "progress" in line]
    assert steps[0] > reached and steps[-1] == goal
    assert json.loads(call("info", "run", "--json")[1])["provenance"]["steps"] == goal


OWN = """
import sfumato as sf, torch
@sf.register("network", "ownnet")
class OwnNet(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = torch.nn.Linear(dim, dim)
    def forward(self, x, level):
        return self.map(x)
"""


def test_a_run_with_a_file_of_ones_own_says_how_to_go_on(call, workplace, monkeypatch):
    monkeypatch.setattr(registry, "FILES", [])
    (workplace / "own.py").write_text(OWN)
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    words = ["--steps", 3, "--batch", 8, "--net", "ownnet", "--out", "run"]
    try:
        status, out, err = call("train", "x.npy", *words, "--modules", "own.py")
        assert status == 0, err
        given = f" --modules {workplace / 'own.py'}"
        following = json.loads(Path("run/report.json").read_text())["next"]
        lines = [*out.splitlines(), *following]
        assert all(
            given in line for line in lines if line.split()[:2] in (["sfumato", "sample"], ["sfumato", "resume"])
        )
        assert sum(given in line for line in lines) >= 2 and given in Path("run/report.html").read_text()
    finally:
        registry._MADE["network"].pop("ownnet"), registry._OWN["network"].pop("OwnNet")
        registry.FILES.clear()
    for words in (["resume", "run", "--steps", 6], ["sample", "run", "-n", 2]):
        status, out, err = call(*words)
        assert status == 2 and "--modules FILE" in err and "modules=[" in err and err.count("\n") == 1, err
    with pytest.raises(SfumatoError, match=r"network 'ownnet', which is not registered here.*modules=\[ownnet\]"):
        sf.resume("run", steps=6)
    monkeypatch.setattr(registry, "FILES", [])
    status, out, err = call("resume", "run", "--steps", 6, "--modules", "own.py")
    registry._MADE["network"].pop("ownnet"), registry._OWN["network"].pop("OwnNet")
    assert status == 0, err
