"""What the command line does to its own process: threads that follow the load, kept and limited memory, signals."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from sfumato.cli import process
from sfumato.training import control


@pytest.mark.parametrize(
    ("most", "others", "count", "threads"),
    [
        (2, 0.0, 2, 2),
        (2, 0.4, 2, 2),
        (2, 0.67, 2, 1),
        (2, 1.9, 2, 1),
        (2, 9.0, 2, 1),
        (8, 2.0, 16, 8),
        (8, 12.1, 16, 4),
    ],
)
def test_threads_have_a_core_each(most, others, count, threads):
    assert process.left(most, others, count) == threads


def test_the_work_of_others_is_seen():
    follower = process.Follower()
    subprocess.run(
        [sys.executable, "-c", "import time; e = time.process_time() + 0.5\nwhile time.process_time() < e: pass"],
        check=True,
    )
    assert follower.others() > 0


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "cores", lambda: 2)
    monkeypatch.setattr(process, "_LOOK_SECONDS", -1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_fewer_threads_at_once_and_more_once_two_looks_agree(two_threads, monkeypatch):
    said = iter([0.0, 0.0, 0.9, 0.0, 0.9, 0.0, 0.0, 0.0, 0.9])  # the first as it begins to count
    monkeypatch.setattr(process.Follower, "others", lambda follower: next(said))
    follow, found = process.Follower(), []
    for _ in range(8):
        follow()
        found.append(torch.get_num_threads())
    assert found == [2, 1, 1, 1, 1, 2, 2, 1]


def test_who_sets_the_number_is_left_alone(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(process.Follower, "others", lambda follower: 2.0)
    monkeypatch.setattr(process, "cores", lambda: 1)
    with process.at_work():
        follow = process.Follower()
        for _ in range(5):
            follow()
        assert torch.get_num_threads() == 2


def test_a_container_of_fewer_cores_has_fewer_threads(two_threads, monkeypatch):
    monkeypatch.setattr(process, "cores", lambda: 1)
    with pytest.raises(KeyError), process.at_work():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("said", "count"), [("150000 100000", 2), ("max 100000", 3), ("1000 100000", 1)])
def test_a_container_says_how_many_cores_it_is_given(tmp_path, monkeypatch, said, count):
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr("sfumato.machine.CGROUP", tmp_path)
    monkeypatch.setattr(process, "_bound", lambda: [0, 1, 5])
    assert process.cores() == count


FAULTS = """
import ctypes, resource, torch
from sfumato.cli.process import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.zeros(4 << 20).add_(1) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).mallopt(-3, 128 << 10)  # what glibc starts with, before the sizes that are freed raise it
print(faults())
keep_freed_memory()
faults()
print(faults())
"""
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has it")


@LINUX
def test_kept_memory_is_not_mapped_anew():
    """Six tensors of 16 MiB, five times."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    free, kept = map(int, done.stdout.split())
    assert kept < free / 10


LIMITED = """
import torch
from sfumato import machine
from sfumato.cli import process

machine.available = lambda: 2.0**28
process._SHARE = 1.0
blocks = []
def fill():
    try:
        while True:
            blocks.append(torch.ones(2**24, dtype=torch.uint8))
    except RuntimeError as error:
        assert machine.out_of_memory(error)
    return len(blocks)
with process.limited():
    print(fill())
    machine.release_memory()
    print(fill())
blocks += [torch.ones(2**24) for _ in range(8)]  # after the block there is no limit
"""


@pytest.mark.slow
@LINUX
def test_memory_that_is_not_there_is_an_error_that_can_be_answered():
    """256 MiB in blocks of 16, and again once memory was given back, half a gigabyte for what is needed beside it."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert 8 <= first <= 16 + (os.cpu_count() or 1) and 8 <= second - first <= 33


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", process.SIGNALS)
def test_a_signal_says_stop_to_the_run_and_the_third_ctrl_c_interrupts(tmp_path, number):
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    before = signal.getsignal(number)
    with process.signals() as listen:
        assert signal.getsignal(number) is before, "until there is a run signals are answered as usual"
        listen(tmp_path)
        signal.raise_signal(number)
        assert (tmp_path / control.FOLDER / "stop").exists()
        for _ in range(1 if number == signal.SIGINT else 2):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_folder_that_is_not_seen_stops_nothing(tmp_path):
    with process.signals() as listen:
        listen(tmp_path / "on another machine")
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """nohup ignores SIGHUP for the command that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.signals() as listen:
            listen(tmp_path)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
