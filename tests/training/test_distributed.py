"""One, two and four processes are one run: torchrun and gloo."""

import ctypes
import hashlib
import json
import os
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
from safetensors import safe_open

import distributed_cases
import sfumato as sf
from sfumato import distributed
from sfumato.cli import main
from sfumato.distributed import ALONE, World
from sfumato.folder import read
from sfumato.training import checkpoint
from sfumato.training.console import Silent

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
CASES = Path(__file__).parents[1] / "distributed_cases.py"


def torchrun(processes: int, *words: str, timeout: float = 240) -> subprocess.CompletedProcess:
    return subprocess.run([*LAUNCH, str(processes), *words], capture_output=True, text=True, timeout=timeout)


def check(folder, processes, *names):
    """One launch of many processes for some cases, each compared with the same case in this process."""
    done = torchrun(processes, str(CASES), str(folder), *names)
    assert done.returncode == 0, done.stderr
    for name in names:
        alone, lines = distributed_cases.run(distributed_cases.CASES[name], ALONE)
        for rank in range(processes):
            with safe_open(folder / f"{name}-{rank}.safetensors", "pt") as file:
                each = {key: file.get_tensor(key) for key in file.keys()}
                log = json.loads(file.metadata()["lines"])
            assert each.keys() == alone.keys() or rank > 0 and name.startswith("fsdp"), name
            same(name, alone, each)
            logs_agree(lines, log)


def same(name, alone, each):
    for key, theirs in each.items():
        ours = alone[key]
        assert torch.equal(ours.isnan(), theirs.isnan()), (name, key)
        apart = float((ours - theirs).nan_to_num().abs().max())
        assert apart < 1e-9 * (1 + float(ours.nan_to_num().abs().max())), (name, key, apart)
    if "swapped" in each:
        assert torch.allclose(each["swapped"], each["samples"][:3], atol=1e-9)
        assert not torch.allclose(each["raw samples"], each["samples"][:3], atol=1e-6)


def logs_agree(ours, theirs):
    for key in ("lr", "samples", "incident"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", "valid_raw", "valid_ema"):
            assert (key in one) == (key in other)
            assert key not in one or one[key] == pytest.approx(other[key], rel=1e-9)


def test_two_processes_change_nothing(tmp_path):
    """Equal rates, samples and losses; weights, averages, optimiser, codebooks, validation and samples to rounding."""
    check(tmp_path, 2, "adaptive", "muon", "vq", "fsdp", "gaps")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_and_parts_change_nothing(tmp_path, processes):
    check(tmp_path, processes, *distributed_cases.CASES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    generator = np.random.default_rng(0)
    np.savez(path, x=generator.normal(size=(80, 6)).astype(np.float32), labels=np.arange(80) % 2)
    return path


WORDS = ["--batch", "8", "--net", "tiny", "--precision", "float32", "--optimizer", "adamw", "--sample-every", "0"]


def cli(processes, *words):
    done = torchrun(processes, "-m", "sfumato.cli", *map(str, words))
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def alone(data, out, *stops):
    """The same run by this process, going on as often."""
    how = {"batch": 8, "net": "tiny", "precision": "float32", "optimizer": "adamw", "sample_every": 0}
    sf.train(data, out, steps=stops[0], console=Silent(), **how)
    for steps in stops[1:]:
        sf.resume(out, steps=steps, console=Silent())


def one_run(ours, theirs, steps):
    (one, mine), (two, other) = (checkpoint.latest(path)[:2] for path in (ours, theirs))
    assert one["counters"]["samples"] == two["counters"]["samples"] and mine.keys() == other.keys()
    assert max(float((mine[name] - other[name]).abs().max()) for name in mine) < 1e-4
    logs = [[(line["step"], line["lr"], line["samples"]) for line in read(p / "metrics.jsonl")] for p in (ours, theirs)]
    assert logs[0] == logs[1] and [step for step, _, _ in logs[0]] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one_and_back(data, tmp_path):
    """The command line under torchrun: one folder, one voice; its checkpoint is any number of processes', in shards
    or whole, and its samples are those of one process."""
    out = tmp_path / "run"
    alone(data, tmp_path / "alone", 5, 9, 12, 15)
    done = cli(2, "train", data, "-o", out, *WORDS, "--steps", 5, "--json")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in said].count("done") == 1
    sf.resume(out, steps=9, console=Silent())
    cli(2, "resume", out, "--steps", 12, "--parallel", "fsdp")
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step_00000009.safetensors", "step_00000012"]
    sf.resume(out, steps=15, console=Silent())
    one_run(tmp_path / "alone", out, 15)
    cli(2, "sample", out, "-n", 7, "-o", tmp_path / "two.npz")
    assert main(["sample", str(out), "-n", "7", "-o", str(tmp_path / "one.npz")]) == 0
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    np.testing.assert_allclose(one["x"], two["x"], rtol=1e-4, atol=1e-4)
    assert one["manifest"] == two["manifest"]


@pytest.mark.slow
def test_adapters_of_two_processes_are_those_of_one(data, tmp_path):
    alone(data, tmp_path / "base", 5)
    how = {"batch": 8, "precision": "float32", "optimizer": "adamw", "sample_every": 0, "lora": 2, "steps": 6}
    sf.train(data, tmp_path / "alone", init=str(tmp_path / "base"), console=Silent(), **how)
    words = [word for name, value in how.items() for word in (f"--{name.replace('_', '-')}", value)]
    cli(2, "train", data, "-o", tmp_path / "run", "--init", tmp_path / "base", *words)
    one_run(tmp_path / "alone", tmp_path / "run", 6)
    assert (tmp_path / "run" / "adapter.safetensors").exists()


@pytest.mark.slow
def test_a_run_of_four_processes_in_shards_goes_on_in_one_and_back(data, tmp_path):
    out = tmp_path / "run"
    alone(data, tmp_path / "alone", 5, 9, 12, 15)
    cli(4, "train", data, "-o", out, *WORDS, "--steps", 5, "--parallel", "fsdp")
    sf.resume(out, steps=9, console=Silent())
    cli(2, "resume", out, "--steps", 12)
    cli(4, "resume", out, "--steps", 15, "--parallel", "ddp")
    one_run(tmp_path / "alone", out, 15)


@pytest.mark.slow
def test_a_run_in_shards_that_is_killed_goes_on(data, tmp_path):
    """kill -9 of all processes while they write checkpoints without a pause: bitwise the run that was not."""
    out, how = tmp_path / "run", ["--steps", "60", "--parallel", "fsdp", "--checkpoint-every", "0.001"]
    cli(2, "train", data, "-o", tmp_path / "whole", *WORDS, *how)
    command = [*LAUNCH, "2", "-m", "sfumato.cli", "train", str(data), "-o", str(out), *WORDS, *how]
    for kill in range(2):
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = checkpoint.found(out)
        while checkpoint.found(out)[:1] == begun[:1] and started.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1 * kill)
        workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        for each in (started.pid, *map(int, workers)):
            os.kill(each, signal.SIGKILL)
        started.wait()
        command = [*LAUNCH, "2", "-m", "sfumato.cli", "resume", str(out)]
    assert checkpoint.latest(out)[0]["counters"]["step"] < 60  # 0 where the second was not whole yet
    cli(2, "resume", out)
    one, two = (checkpoint.latest(path)[1] for path in (tmp_path / "whole", out))
    assert all(torch.equal(one[name], two[name]) for name in one)


HANG = """
import os, signal, subprocess, torch
from sfumato import nets, noise
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit
from sfumato.distributed import joined
torch.manual_seed(0)
model = Denoiser(nets.MLP(5, width=16, depth=2), Gaussian(Flow()), "velocity")
config = TrainConfig(steps=1000, batch=8, precision="float32")
x = noise.normal(3, range(60), (5,), noise.DATA)
try:
    with joined(torch.device("cpu"), 4) as world:
        for progress in fit(model, x, config, state=State(model, config), world=world):
            if progress.step == 3 and world.rank == 1:
                # torchrun would give it 30 s
                subprocess.Popen(["sh", "-c", f"sleep 24; kill -9 {os.getpid()}"], start_new_session=True)
                os.kill(os.getpid(), signal.SIGSTOP)
except SfumatoError as error:
    print(error, flush=True)
    os._exit(2)
"""


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_named(tmp_path):
    path = tmp_path / "hang.py"
    path.write_text(HANG)
    done = torchrun(2, str(path), timeout=120)
    assert done.returncode != 0
    assert "Of 2 processes process 1 (counted from 0) did not respond" in done.stdout, done.stderr[-2000:]


TURNS = """
import os, signal, subprocess, sys, time, torch
import sfumato.distributed as module
from sfumato.errors import SfumatoError
def say(line):  # at once, so that lines of two processes stay apart
    os.write(1, f"{line}\\n".encode())
def turns(world):
    order = []
    def slow():  # longer than any process is waited for elsewhere
        order.append(time.time())
        time.sleep(10 if world.leads else 1)
        return time.time()
    end = world.local_main_first(slow)
    first, last = world.all_gather_object(order[0]), world.all_gather_object(end)
    if world.leads:
        say(f"in turn: {first[1] >= last[0]}")
    def broken():
        if world.rank == 1:
            raise SfumatoError("photos is empty")
        return 0
    try:
        world.local_main_first(broken)
    except SfumatoError as error:
        say(f"process {world.rank} hears: {error}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, where another process has ended
    if sys.argv[1] == "silent":
        module.OPENING = 8.0
    def lost():
        if sys.argv[1] == "gone":
            os._exit(3)
        # torchrun would give it 30 s
        subprocess.Popen(["sh", "-c", f"sleep 40; kill -9 {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    world.local_main_first(lost)
try:
    with module.joined(torch.device("cpu"), 8) as world:
        turns(world)
except SfumatoError as error:
    say(str(error))
    os._exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["silent", "gone"])
def test_opening_data_may_take_longer_than_the_time_out(tmp_path, case):
    """The first process of a machine comes before the others; an error in one is one in all; one that is silent has a
    time-out of its own, and one that is gone is missed at once."""
    path = tmp_path / "turns.py"
    path.write_text(TURNS)
    done = torchrun(2, str(path), case)
    said = done.stdout.splitlines()
    assert done.returncode != 0 and "in turn: True" in said, done.stderr[-2000:]
    assert {f"process {rank} hears: photos is empty" for rank in (0, 1)} <= set(said)
    assert any("Of 2 processes process 0 (counted from 0) did not respond" in line for line in said)


SLOW = """
import os, sys, time
from pathlib import Path
from sfumato import distributed
from sfumato.cli import main
from sfumato.data import images
distributed.TIMEOUT, images.WORTH_COUNT, real = 8.0, 1, images.decode
os.cpu_count = lambda: 2
rank, apart = os.environ["RANK"], os.environ["CASE"] == "two machines"
os.environ["SFUMATO_CACHE"] = f"cache{rank if apart else ''}"
if apart:  # the second of which is much faster
    os.environ["LOCAL_RANK"] = "0"
def decode(*given):
    time.sleep(0 if apart and rank == "1" else 1)
    Path(f"decoded{rank}").touch()
    return real(*given)
images.decode = decode
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one cache", "two machines"])
def test_pictures_that_take_longer_to_decode_than_the_time_out(tmp_path, monkeypatch, case):
    """By the first process alone where the others see its cache, else by each machine; one voice either way."""
    (tmp_path / "photos").mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASE", case)
    done = torchrun(2, "slow.py", "train", "photos", "-o", "run", *WORDS, "--steps", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.glob("decoded*")) == ["decoded0", "decoded1"][: 1 + (case == "two machines")]
    counts = [line for line in done.stderr.splitlines() if "Decoding pictures" in line]
    assert counts[-1].startswith("Decoding pictures: 20 of 20") and sum("eta" not in line for line in counts) == 1
    assert read(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2


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
    assert (
        ALONE.all_gather(x) is x
        and ALONE.broadcast(5) == 5
        and ALONE.all_gather_object(5) == [5]
        and ALONE.any(True, x.device)
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="what threads do is told by Linux")
def test_processes_part_only_once_the_threads_of_communication_are_quiet():
    finished = []

    def work():
        ctypes.CDLL(None).prctl(15, b"pt_gloo_runloop")  # PR_SET_NAME
        named.set()
        for _ in range(6):
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)  # without the interpreter's lock, as gloo's are
        finished.append(time.monotonic())

    named, thread = threading.Event(), threading.Thread(target=work)
    thread.start()
    named.wait()
    distributed._wait_for_gloo()
    assert finished and finished[0] <= time.monotonic()
    thread.join()
