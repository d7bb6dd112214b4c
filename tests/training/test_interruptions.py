"""Runs, their folder and their caller's process: who may write, what a stop leaves, what modes and threads change."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import disk_faults
import sfumato as sf
from consoles import Heard
from disk_faults import facts, same
from sfumato import files, folder, serialization
from sfumato.errors import SfumatoError
from sfumato.solver_selection import make_plan
from sfumato.training import checkpoint
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted
from sfumato.training.session import Hook

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks and signals of POSIX")
SOURCE = str(Path(sf.__file__).parent)
HOW = {
    "steps": 14, "batch": 8, "net": "MLP(width=16, depth=1)", "precision": "float32", "snapshots": 0, "sample_every": 0,
}  # fmt: skip
X = disk_faults.data()


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    """Pictures without matplotlib, which is most of the time of such a run."""
    for room in (disk_faults.board_page, disk_faults.report):
        monkeypatch.setattr(room, "chart", lambda *_, **__: "<svg></svg>")


def train(out: Path, data: object = X, console: Silent | None = None, **changes: object) -> sf.training.Run:
    return sf.train(data, out, console=console or Silent(), **{**HOW, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The facts of a run that nothing disturbed."""
    return facts(train(tmp_path_factory.mktemp("whole") / "run").path)


def assert_same(out: Path, whole: dict) -> None:
    found = facts(out)
    wrong = [name for name in whole if name != "names" and not same(found[name], whole[name])]
    assert not wrong, wrong


class Interrupts(Hook):
    """KeyboardInterrupt at some lines of the package, counted from the end of step 6 to that of step 7."""

    def __init__(self, *lines: int) -> None:
        self.lines, self.count = lines, 0

    def trace(self, frame, what, _):
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        self.count += what == "line"
        if what == "line" and self.count in self.lines:
            raise KeyboardInterrupt
        return self.trace

    def step(self, session, progress):
        sys.settrace(self.trace if progress.step == 6 else None)


def interrupted(out: Path, *lines: int) -> int:
    hook = Interrupts(*lines)
    try:
        train(out, on_start=lambda session: session.hooks.insert(0, hook))
    except Interrupted:
        sf.resume(out, X, console=Silent())
    finally:
        sys.settrace(None)
    return hook.count


@pytest.mark.first(1)
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("every", [150, pytest.param(7, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_an_interrupt_at_any_line_of_a_step_leaves_no_half_of_it(tmp_path, whole, every, twice):
    """A second one falls into the checkpoint of the first, which is then written all the same."""
    total = interrupted(tmp_path / "counted")
    assert total > 1000
    for line in range(1, total, every):
        interrupted(tmp_path / "run", line, *([line + 60] if twice else []))
        assert_same(tmp_path / "run", whole)
        shutil.rmtree(tmp_path / "run")


def test_a_second_interrupt_waits_for_the_checkpoint_of_the_first(tmp_path, whole, monkeypatch):
    write, calls = files.write_sealed, []

    def interrupt(*given):
        calls.append(given)
        if len(calls) == 2:  # the first is the checkpoint of step 0
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr("sfumato.training.checkpoint.write_sealed", interrupt)
    with pytest.raises(Interrupted, match="Stopped at step 5"):
        train(tmp_path / "run", console=Heard(stop=5))
    assert folder.newest_step(tmp_path / "run") == 5
    sf.resume(tmp_path / "run", X, console=Silent())
    assert_same(tmp_path / "run", whole)


# One process a folder


HOLDS = """
import sys, time
from pathlib import Path
from sfumato import folder
with folder.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_trains_a_run_and_a_dead_one_holds_nothing(tmp_path, whole):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", console=Heard(stop=5))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for call in (lambda: sf.resume(tmp_path / "run", X, console=Silent()), lambda: train(tmp_path / "run")):
                with pytest.raises(SfumatoError, match="being trained by another process"):
                    call()
        finally:
            other.kill()
    assert (tmp_path / "run/.lock").exists(), "it was killed"
    sf.resume(tmp_path / "run", X, console=Silent())
    assert_same(tmp_path / "run", whole)
    assert not (tmp_path / "run/.lock").exists()


def test_names_by_default_pass_over_a_folder_that_another_process_has_begun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Path("runs/points")
    place.mkdir(parents=True)
    with files.locked(place / folder.LOCK, create=True), folder.new(None, "points") as path:
        assert path == Path("runs/points-2")


def test_a_lock_is_of_the_file_that_the_path_names(tmp_path):
    """Whoever waits for a file that is replaced meanwhile gets the new one."""
    path, held, order = tmp_path / "file", threading.Event(), []
    path.write_text("old")

    def first() -> None:
        with files.locked(path):
            held.set()
            while not order:
                time.sleep(0.01)
            files.write_text(path, "new")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with pytest.raises(files.Busy, match="in use by another process"), files.locked(path):
        pass
    order.append("go")
    with files.locked(path, wait=60):
        assert path.read_text() == "new"
        with path.open() as again, pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    thread.join()


# What a killed run left


def test_a_run_without_a_checkpoint_is_begun_again(tmp_path, whole):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "samples").mkdir()
    (out / "config.yaml").write_text("batch: 8\n")
    (out / "metrics.jsonl").write_text("")
    (out / "checkpoints/.step_00000000.safetensors.0123456789ab.tmp").write_bytes(b"half")
    with pytest.raises(SfumatoError, match="holds no checkpoint to resume from: train into it again"):
        sf.resume(out, X, console=Silent())
    train(out)
    assert_same(out, whole)
    assert not list(out.rglob("*.tmp"))
    with pytest.raises(SfumatoError, match="already holds a run"):
        train(out)


def test_a_run_that_stopped_in_its_first_stage_is_resumed(tmp_path):
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "config.yaml").write_text("batch: 8\n")
    with pytest.raises(SfumatoError, match=f"sfumato resume {tmp_path} ends its first stage"):
        checkpoint.weights(tmp_path)


@pytest.mark.parametrize("missing", [("report.html",), ("report.json", "report.html"), ("model.safetensors",)])
def test_what_follows_the_last_checkpoint_is_made_when_resumed(tmp_path, whole, missing):
    out = train(tmp_path / "run").path
    for name in missing:
        (out / name).unlink()
    run = sf.resume(out, X, console=Silent())
    assert_same(out, whole)
    assert facts(out)["names"] == whole["names"] and run.metrics[-1]["done"]
    with pytest.raises(SfumatoError, match="has already trained for 14 steps of 14"):
        sf.resume(out, X, console=Silent())


@pytest.mark.parametrize(("name", "there"), [(".lock", True), ("metrics.jsonl", False), ("config.yaml", True)])
def test_nothing_is_written_through_a_link(tmp_path, name, there):
    """A link is refused, or replaced where the file would be; there: whether the file that it names exists."""
    mine, out = tmp_path / "mine", tmp_path / "run"
    if there:
        mine.write_text("mine")
    out.mkdir()
    (out / name).symlink_to(mine)
    if name == "config.yaml":
        train(out, steps=2)
        assert not (out / name).is_symlink()
    else:
        with pytest.raises(SfumatoError, match="cannot be written: a symbolic link stands there"):
            train(out)
    assert mine.read_text() == "mine" if there else not mine.exists()


@pytest.mark.parametrize("how", ["renamed", "deleted"])
def test_a_folder_that_goes_is_named_and_the_run_is_saved_beside_it(tmp_path, whole, how):
    out, away = tmp_path / "run", tmp_path / "away"

    class Goes(Silent):
        def __call__(self, progress):
            if progress.step == 6:
                out.rename(away)
                if how == "deleted":
                    shutil.rmtree(away)

    with pytest.raises(SfumatoError, match="is gone: .* Step 6 is saved: sfumato resume ") as error:
        train(out, console=Goes())
    assert not out.exists()
    saved = Path(str(error.value).rpartition("sfumato resume ")[2])
    sf.resume(saved, X, console=Silent())
    found = facts(saved)
    assert same(found["tensors"], whole["tensors"]) and found["lines"] == whole["lines"][-len(found["lines"]) :]


class Deletes(Hook):
    def end(self, session):
        shutil.rmtree(session.path)


@pytest.mark.parametrize("place", [0, -1, None], ids=["before the grid", "before the report", "last"])
def test_a_folder_that_goes_after_the_last_step_does_not_come_back(tmp_path, whole, place):
    """`place`: among the hooks."""
    out = tmp_path / "run"

    def begin(session):
        session.hooks.insert(len(session.hooks) if place is None else place, Deletes())

    with pytest.raises(SfumatoError, match="is gone: .* Step 14 is saved: sfumato resume ") as error:
        train(out, on_start=begin)
    assert not out.exists()
    saved = Path(str(error.value).rpartition("sfumato resume ")[2])
    sf.resume(saved, X, console=Silent())
    assert same(facts(saved)["tensors"], whole["tensors"]) and (saved / "report.html").exists()


# The caller's modes and threads


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_modes_of_the_caller_change_nothing(tmp_path, whole, mode):
    with mode():
        run = train(tmp_path / "run", data=torch.from_numpy(X) * 1)  # made within the mode
        assert run.metrics[-1]["done"]
        train(tmp_path / "stopped", steps=5)
        sf.resume(tmp_path / "stopped", X, console=Silent(), steps=7)
    assert_same(tmp_path / "run", whole)


def test_the_default_dtype_of_the_caller_changes_nothing(tmp_path, whole):
    torch.set_default_dtype(torch.float64)
    try:
        train(tmp_path / "run")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(tmp_path / "run", whole)


def test_runs_in_threads_are_the_run_alone(tmp_path, whole):
    """Two at once, whose networks draw their first weights from torch's one generator."""
    before = torch.get_rng_state()
    threads = [threading.Thread(target=train, args=(tmp_path / name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "other"):
        assert_same(tmp_path / name, whole)
    assert torch.equal(torch.get_rng_state(), before)


def test_many_threads_sample_one_model_and_load_it_as_one_after_another(tmp_path):
    path = sf.save(small(), tmp_path / "model.safetensors")
    model = sf.load(path)
    alone = [sf.sample(model, 8, 4, seed=seed) for seed in range(64)]
    with ThreadPoolExecutor(64) as pool:
        shared = list(pool.map(lambda seed: sf.sample(model, 8, 4, seed=seed), range(64)))
        own = list(pool.map(lambda seed: sf.sample(sf.load(path), 8, 4, seed=seed), range(64)))
    assert same(dict(enumerate(shared)), dict(enumerate(alone))) and same(dict(enumerate(own)), dict(enumerate(alone)))


def test_a_call_of_the_system_that_a_signal_breaks_off_is_made_again(tmp_path, whole):
    """A timer's signal a thousand times a second, which Python answers."""
    counted = []
    before = signal.signal(signal.SIGALRM, lambda *what: counted.append(what))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        train(tmp_path / "run")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert counted
    assert_same(tmp_path / "run", whole)


# Readers and writers of one file


def small() -> sf.Denoiser:
    source = sf.data.open(X)
    torch.manual_seed(0)
    net = sf.nets.build((2,), 0, "tiny")
    return sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, sf.data.DataSpec.fit(source))


WRITES = """
import sys, sfumato as sf
model = sf.load(sys.argv[1])
print("begun", flush=True)
for number in range(100_000):
    model.provenance["number"] = number
    sf.save(model, sys.argv[1])
"""


def test_a_file_is_read_whole_while_another_process_writes_it(tmp_path):
    path = sf.save(small(), tmp_path / "model.safetensors")
    with subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "begun\n"
            seen = set()
            while len(seen) < 20:
                assert writer.poll() is None
                seen.add(sf.load(path).provenance.get("number"))
                serialization.read_contract(path)
        finally:
            writer.kill()


STORES = """
import sys, sfumato as sf
from sfumato.serialization import store_plan
from sfumato.solver_selection import make_plan
model = sf.load(sys.argv[1])
plans = [make_plan(model, steps, None) for steps in map(int, sys.argv[2:])]
print("begun", flush=True)
sys.stdin.readline()
for plan in plans:
    store_plan(sys.argv[1], plan)
"""


def test_plans_that_several_processes_store_at_once_are_all_kept(tmp_path):
    path, wanted = sf.save(small(), tmp_path / "model.safetensors"), [range(3, 9), range(9, 15), range(15, 21)]
    words = [[sys.executable, "-c", STORES, str(path), *map(str, steps)] for steps in wanted]
    writers = [subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for each in words]
    for writer in writers:
        assert writer.stdout.readline() == "begun\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert {plan.steps for plan in sf.load(path).plans.values()} == {step for steps in wanted for step in steps}


def test_a_plan_does_not_wait_for_ever_for_a_process_that_is_stopped(tmp_path, monkeypatch):
    path = sf.save(small(), tmp_path / "model.safetensors")
    monkeypatch.setattr(serialization, "_WAIT", 0.2)
    with files.locked(path), pytest.raises(SfumatoError, match="model.safetensors is in use by another process"):
        serialization.store_plan(path, make_plan(sf.load(path), 3, None))
    assert serialization.store_plan(path, make_plan(sf.load(path), 3, None)) == "3"


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path):
    plan = sf.solvers.Plan.load(_saved_plan(tmp_path))
    code = (
        "import resource, signal, sys, sfumato as sf\n"
        "plan = sf.solvers.Plan.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "try: plan.save(sys.argv[1])\n"
        "except sf.SfumatoError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "plan.json")], capture_output=True, text=True)
    assert "cannot be written: file too large" in done.stdout, done.stderr
    assert sf.solvers.Plan.load(tmp_path / "plan.json") == plan and os.listdir(tmp_path) == ["plan.json"]


def _saved_plan(place: Path) -> Path:
    sf.solvers.DDIM().plan(sf.schedules.Flow(), 4).save(place / "plan.json")
    return place / "plan.json"


def test_a_path_that_is_not_flushed_to_the_disk_is_an_error(tmp_path, monkeypatch):
    """Network file systems say at fsync alone that the disk is full."""

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    files.write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SfumatoError, match="cannot be written: no space left on device"):
        files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_whole_numbers_of_any_kind_and_devices_that_compute_nothing(tmp_path):
    path = train(tmp_path / "run", seed=np.int64(0), steps=np.int32(2), batch=np.float64(8)).path
    model = sf.load(path)
    one = sf.sample(model, np.int64(3), np.int16(2), seed=torch.tensor(4))
    assert torch.equal(one, sf.sample(model, 3, 2, seed=4))
    assert sf.tune(model, np.int64(2), points=np.int64(8), rounds=np.int64(0), seed=np.int64(0)).steps == 2
    for call in (
        lambda: train(tmp_path / "new", device="meta"),
        lambda: sf.load(path, device="meta"),
        lambda: sf.load(path, device="gpu"),
    ):
        with pytest.raises(SfumatoError, match="There is no device '(meta|gpu)': give auto, cpu"):
            call()
    with pytest.raises(SfumatoError, match="on the meta device"):
        sf.sample(model.to("meta"), 2, 2)
