"""Runs and their folders: exact resume through the files, interruption, and what a user may get wrong."""

import dataclasses
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.folder import Log, read
from sfumato.training import checkpoint
from sfumato.training.console import Console, Silent
from sfumato.training.run import Interrupted
from sfumato.training.validation import Judge

SETTINGS = {"steps": 12, "batch": 8, "precision": "float32", "net": "tiny", "sample_every": 6}
TIMED = {"elapsed", "eta", "rate", "data_wait"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "moons.npz"
    generator = np.random.default_rng(0)
    np.savez(path, x=generator.normal(size=(80, 6)).astype(np.float32), labels=np.arange(80) % 2)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> sf.training.Run:
    return sf.train(data, tmp_path_factory.mktemp("runs") / "whole", console=Silent(), **SETTINGS)


class StopAt(Silent):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.said = step, []

    def note(self, text):
        self.said.append(text)

    def __call__(self, progress):
        if progress.step == self.step:
            signal.raise_signal(signal.SIGINT)


def same(a: Path, b: Path) -> None:
    first, second = (checkpoint.latest(path) for path in (a, b))
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in TIMED} for line in read(path / "metrics.jsonl")] for path in (a, b)
    )
    assert ours == theirs and [line["step"] for line in ours] == list(range(1, 13))


def test_a_run_leaves_its_folder(whole):
    assert {p.name for p in whole.path.iterdir()} == {
        "config.yaml", "metrics.jsonl", "samples", "averages", "report.html", "report.json", "checkpoints",
        "model.safetensors",
    }  # fmt: skip
    assert [p.name for p in checkpoint.found(whole.path)] == ["step_00000012.safetensors"]
    assert sorted(p.name for p in (whole.path / "samples").iterdir()) == ["step_00000006.png", "step_00000012.png"]
    manifest = Image.open(whole.path / "samples/step_00000012.png").text
    assert manifest["samples_seen"] == "96" and manifest["guidance"] == "2.5"
    assert whole.metrics[-1]["done"] and whole.denoiser.provenance["steps"] == 12
    assert sf.training.config.from_yaml(str(whole.path / "config.yaml")) == whole.config


def test_the_report_opens_without_a_network(whole):
    page = (whole.path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and page.count("data:image/png;base64,") == 2
    inside = re.sub(r' xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)  # names, which nothing fetches
    assert not re.search(r'(?:src|href)=(?!"data:|"#)|https?:|@import|url\((?!#)', inside)
    assert "moving average" in page and "trivial predictor" in page and f"sfumato sample {whole.path}" in page


def test_a_stopped_run_goes_on_exactly(data, whole, tmp_path):
    out, console = tmp_path / "run", StopAt(5)
    with pytest.raises(Interrupted, match=f"sfumato resume {out}"):
        sf.train(data, out, console=console, **SETTINGS)
    assert "Stopped at step 5" in console.said[-1]
    assert sf.load(out).provenance["steps"] == 5 and (out / "report.html").exists()
    # lines that a killed process wrote after its checkpoint are taken away again
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "samples": 6, "loss": 99.0}\n{"step": 7, "lo')
    run = sf.resume(out, console=Silent())
    assert run.denoiser.provenance["steps"] == 12
    same(out, whole.path)


def test_a_stopped_run_in_low_precision_goes_on_exactly(data, tmp_path):
    """The network of each step is that of the weights then: from a checkpoint it is made anew."""
    how = {**SETTINGS, "precision": "bfloat16", "sample_every": 0}
    whole = sf.train(data, tmp_path / "whole", console=Silent(), **how)
    with pytest.raises(Interrupted):
        sf.train(data, tmp_path / "run", console=StopAt(5), **how)
    sf.resume(tmp_path / "run", console=Silent())
    same(tmp_path / "run", whole.path)


@pytest.mark.parametrize(("where", "kept"), [("in the network", 5), ("after the optimiser", 0)])
def test_ctrl_c_within_a_step_leaves_no_half_of_it(data, whole, tmp_path, where, kept):
    """Before weights change the checkpoint is of the step before; afterwards it is the last one that was written."""

    def start(session) -> None:
        net, state = session.denoiser.net, session.state

        def interrupt(*_) -> None:
            if state.step == 5 and net.training:
                signal.raise_signal(signal.SIGINT)

        if where == "in the network":
            net.register_forward_hook(interrupt)
        else:
            state.optimizer.register_step_post_hook(interrupt)

    with pytest.raises(Interrupted, match=f"Stopped at step {kept};"):
        sf.train(data, tmp_path / "run", console=Silent(), on_start=start, **SETTINGS)
    assert checkpoint.latest(tmp_path / "run")[0]["counters"]["step"] == kept
    sf.resume(tmp_path / "run", console=Silent())
    same(tmp_path / "run", whole.path)


@pytest.mark.parametrize("step", [5, 12])
@pytest.mark.parametrize("where", ["before the line", "after the line"])
def test_ctrl_c_between_a_step_and_its_line_loses_and_doubles_no_line(data, whole, tmp_path, monkeypatch, where, step):
    """Also after the last step: the run then ends once it is resumed, without a larger budget."""
    at, write, due = Judge.at, Log.write, [True]

    def interrupt(now: int) -> None:
        if now == step and due:
            due.clear()
            signal.raise_signal(signal.SIGINT)

    def judged(judge, *how):
        if where == "before the line":
            interrupt(judge.state.step)
        return at(judge, *how)

    def written(log, line):
        write(log, line)
        if where == "after the line":
            interrupt(line["step"])

    monkeypatch.setattr(Judge, "at", judged)
    monkeypatch.setattr(Log, "write", written)
    with pytest.raises(Interrupted, match=f"Stopped at step {step};"):
        sf.train(data, tmp_path / "run", console=Silent(), **SETTINGS)
    assert not due
    run = sf.resume(tmp_path / "run", console=Silent())
    same(run.path, whole.path)
    assert run.metrics[-1]["done"] and (run.path / "report.json").exists()


def test_ctrl_c_while_a_stopped_run_is_saved_says_how_to_go_on(data, tmp_path, monkeypatch):
    def start(session) -> None:
        monkeypatch.setattr(checkpoint, "write", lambda *_: signal.raise_signal(signal.SIGINT))
        session.console.step = 4

    console, out = StopAt(-1), tmp_path / "run"
    with pytest.raises(Interrupted, match=f"newest checkpoint is that of step 0. To resume: sfumato resume {out}"):
        sf.train(data, out, console=console, on_start=start, **SETTINGS)
    assert "Interrupted while saving" in console.said[-1]


def test_a_half_written_checkpoint_is_never_chosen(data, whole, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        sf.train(data, out, console=StopAt(4), **SETTINGS)
    newest = checkpoint.found(out)[0]
    (newest.parent / "step_00000009.safetensors").write_bytes(newest.read_bytes()[:-100])
    (newest.parent / ".step_00000010.safetensors.x.tmp").write_bytes(b"")
    console = StopAt(-1)
    sf.resume(out, console=console)
    assert "Skipped" in console.said[0] and "step_00000009" in console.said[0] and "step 4" in console.said[1]
    same(out, whole.path)


CHILD = (
    "import sys, sfumato as sf; from sfumato.training.console import Silent\n"
    "how = dict(console=Silent(), steps=int(sys.argv[3]), batch=8, net='tiny', checkpoint_every=0.001,\n"
    "           precision='float32', sample_every=0)\n"
    "sf.train(*sys.argv[1:3], **how)"
)
# Dies some time after its first checkpoint, and before its last step in any case: DATA OUT STEPS SECONDS
KILLED = """
import os, signal, sys, threading
from pathlib import Path
import sfumato as sf
from sfumato.training import checkpoint
from sfumato.training.console import Silent

data, out, steps, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
before = checkpoint.found(out)

class Dies(Silent):
    due = None

    def __call__(self, progress):
        last = progress.step >= steps - 1
        if self.due is None and (last or checkpoint.found(out)[:1] != before[:1]):
            self.due = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            self.due.start()
        if last:
            self.due.join()

if before:
    sf.resume(out, console=Dies())
else:
    how = dict(batch=8, net="tiny", checkpoint_every=0.001, precision="float32", sample_every=0)
    sf.train(data, out, console=Dies(), steps=steps, **how)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_is_the_run_that_was_not(data, tmp_path, kills):
    """Weights, optimiser, averages and log, bit by bit, after `kill -9` at random moments."""
    steps, out, moments = 40 * kills, tmp_path / "run", random.Random(0)
    how = {**SETTINGS, "steps": steps, "sample_every": 0}
    sf.train(data, tmp_path / "whole", console=Silent(), **how)
    for _ in range(kills):
        words = [str(data), str(out), str(steps), str(moments.uniform(0, 0.1))]
        assert subprocess.run([sys.executable, "-c", KILLED, *words]).returncode == -signal.SIGKILL
    assert checkpoint.latest(out)[0]["counters"]["step"] < steps
    sf.resume(out, console=Silent())
    first, second = (checkpoint.latest(path) for path in (out, tmp_path / "whole"))
    assert first[0]["counters"]["step"] == steps and first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    logs = [
        [{k: v for k, v in line.items() if k not in TIMED} for line in read(p / "metrics.jsonl")]
        for p in (out, tmp_path / "whole")
    ]
    assert logs[0] == logs[1]


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_state(data, tmp_path):
    """The limit on the size of a file stands for the disk: it falls while the run is under way."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "run"
    code = CHILD.replace(
        "sf.train(*sys.argv[1:3], **how)",
        """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    sf.train(*sys.argv[1:3], **how)
except sf.SfumatoError as error:
    print(error); sys.exit(2)""",
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(out), "100000"], stdout=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 200
    while len(checkpoint.found(out)) < 2 and time.monotonic() < limit and child.poll() is None:
        time.sleep(0.01)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    words, _ = child.communicate(timeout=200)
    assert child.returncode == 2 and words.count("\n") == 1 and "cannot be written: file too large" in words
    reached = checkpoint.latest(out)[0]["counters"]["step"]
    assert not list(out.glob("checkpoints/.*")), "what was half-written is taken away"
    run = sf.resume(out, steps=reached + 3, console=Silent())
    assert run.metrics[-1]["step"] == reached + 3


def test_a_finished_run_wants_a_larger_budget(data, tmp_path):
    sf.train(data, tmp_path / "run", console=Silent(), **{**SETTINGS, "steps": 3})
    with pytest.raises(SfumatoError, match="has already trained for 3 steps of 3"):
        sf.resume(tmp_path / "run", console=Silent())
    with pytest.raises(SfumatoError, match="trained for 3 steps, and a budget is of the whole run.*more than that"):
        sf.resume(tmp_path / "run", steps=2, console=Silent())
    assert sf.resume(tmp_path / "run", steps=5, console=Silent()).metrics[-1]["step"] == 5
    assert len(checkpoint.found(tmp_path / "run")) == 2


def test_a_finished_run_of_minutes_wants_more_of_them(data, tmp_path):
    own = {name: value for name, value in SETTINGS.items() if name != "steps"}
    sf.train(data, tmp_path / "run", console=Silent(), **own, minutes=0.001)
    with pytest.raises(SfumatoError, match=r"has already trained for .* minutes? of 0\.001"):
        sf.resume(tmp_path / "run", console=Silent())
    with pytest.raises(SfumatoError, match="minutes?, and a budget is of the whole run"):
        sf.resume(tmp_path / "run", minutes=0.001, console=Silent())


def test_training_works_outside_the_main_thread(data, tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(sf.train(data, tmp_path / "run", console=Silent(), **{**SETTINGS, "steps": 2}))
    )
    thread.start()
    thread.join()
    assert found and found[0].metrics[-1]["done"]


def test_an_array_in_memory_is_asked_for_again(tmp_path):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    sf.train(x, tmp_path / "run", console=Silent(), **{**SETTINGS, "steps": 2})
    with pytest.raises(SfumatoError, match="array in memory"):
        sf.resume(tmp_path / "run", steps=4, console=Silent())
    with pytest.raises(SfumatoError, match="not the data"):
        sf.resume(tmp_path / "run", data=x + 1, steps=4, console=Silent())
    assert sf.resume(tmp_path / "run", data=x, steps=4, console=Silent()).metrics[-1]["step"] == 4


def test_what_bad_input_gets(data, whole, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    places = (
        (whole.path, "already holds a run"), (blocked, "is a file"), (blocked / "x", "cannot be written"),
        ("", "The run folder has no name"), ("x" * 300, "The run folder cannot have so long a name"),
        (tmp_path / "\udcff", "is not a name in UTF-8"),
    )  # fmt: skip
    for out, words in places:
        with pytest.raises(SfumatoError, match=words):
            sf.train(data, out, console=Silent(), **SETTINGS)
    for settings, words in (
        ({"epochs": 3}, "no setting 'epochs'"), ({"device": "cuda:77"}, "cuda:77"), ({"target": "eps"}, "zero signal"),
        ({"target": "w"}, "target cannot be"), ({"labels": str(tmp_path / "none.txt")}, "labels .* cannot be read"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            sf.train(data, tmp_path / "new", console=Silent(), **{**SETTINGS, **settings})
    with pytest.raises(SfumatoError, match="did you mean|not one of the built-in"):
        sf.train(tmp_path / "nothing", tmp_path / "new", console=Silent())
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no names in other encodings")
@pytest.mark.parametrize("where", ["data\udcff", "data/\udcff"])
def test_data_whose_names_no_file_can_hold_are_refused_before_the_run(tmp_path, where):
    for folder in (where, f"{Path(where).parent}/other" if "/" in where else f"{where}/other"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for i in range(20):
            with open(tmp_path / folder / f"{i}.png", "wb") as file:
                Image.fromarray(np.full((8, 8), i, np.uint8)).save(file, "PNG")
    with pytest.raises(SfumatoError, match="udcff is not a name in UTF-8.*rename it"):
        sf.train(tmp_path / Path(where).parts[0], tmp_path / "run", console=Silent(), **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_bad_resumes(whole, tmp_path):
    for run, words in ((tmp_path / "no", "not a run folder"), (tmp_path, "holds no run")):
        with pytest.raises(SfumatoError, match=words):
            sf.resume(run)
    with pytest.raises(SfumatoError, match="batch cannot change"):
        sf.resume(whole.path, batch=3)
    with pytest.raises(SfumatoError, match="did you mean 'steps'"):
        sf.resume(whole.path, step=3)


def test_labels_from_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    (tmp_path / "y.txt").write_text("\n".join(["red", "deep blue"] * 10) + "\n")
    run = sf.train(tmp_path / "x.npy", tmp_path / "run", labels=tmp_path / "y.txt", console=Silent(), **SETTINGS)
    assert run.denoiser.spec.classes == ("deep blue", "red")


class Stream(io.StringIO):
    def __init__(self, live: bool) -> None:
        super().__init__()
        self.live = live

    def isatty(self):
        return self.live


@pytest.mark.parametrize("live", [False, True])
def test_a_bar_is_drawn_on_a_terminal_only(data, tmp_path, live):
    stream = Stream(live)
    sf.train(data, tmp_path / "run", console=Console(stream), **SETTINGS)
    text = stream.getvalue()
    assert ("\r" in text) == live
    assert "step 12" in text and "100%" in text and "samples/s" in text and "nan" not in text
    assert "loss" in text and "valid" in text and "80 samples" in text


def test_a_stage_does_not_show_the_validation_of_the_one_before(data, tmp_path):
    console, heard = Console(Stream(False)), []

    class Keeps(Silent):
        def __call__(self, progress):
            heard.append(progress)

    sf.train(data, tmp_path / "run", console=Keeps(), **SETTINGS)
    for progress in heard:
        console(progress)
    assert "valid" in console.stream.getvalue()
    console.close()
    before = len(console.stream.getvalue())
    console(dataclasses.replace(heard[-1], validation=None))
    assert "step 12" in console.stream.getvalue()[before:] and "valid" not in console.stream.getvalue()[before:]


def test_classes_that_are_numbers_are_drawn(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    run = sf.train(x, tmp_path / "run", labels=np.resize([1, 5, 2], 40), console=Silent(), **SETTINGS)
    assert run.denoiser.spec.classes == ("1", "2", "5")
    assert len(list((run.path / "samples").iterdir())) == 2


def test_a_grid_that_fails_does_not_stop_the_run(data, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise SfumatoError("no such thing")

    monkeypatch.setattr("sfumato.training.grids.sample", refuse)
    console = StopAt(-1)
    run = sf.train(data, tmp_path / "run", console=console, **SETTINGS)
    assert run.metrics[-1]["done"] and sum("No samples were drawn" in line for line in console.said) == 2


def test_settings_changed_in_the_folder_are_listed_and_need_a_flag(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        sf.train(data, out, console=StopAt(4), **SETTINGS)
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(
        text.replace("\nlr: 0.004\n", "\nlr: 0.001\n").replace("\nclip: 1.0", "\nclip: 2.0")
    )
    with pytest.raises(SfumatoError, match=r"lr 0.004 -> 0.001, clip 1.0 -> 2.0. Accept this with --changed"):
        sf.resume(out, console=Silent())
    run = sf.resume(out, changed=True, console=Silent())
    assert run.config.lr == 0.001 and run.config.clip == 2.0
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    with pytest.raises(SfumatoError, match="seed cannot change"):
        sf.resume(out, changed=True, steps=20, console=Silent())
