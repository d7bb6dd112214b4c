"""The load of the machine, and threads that follow it."""

import subprocess
import sys

import pytest
import torch

from sfumato.machine import threads as machine

STAT = """cpu  100 0 50 900 10 0 0 0 0 0
cpu0 60 0 30 400 5 1 2 3 0 0
cpu1 40 5 20 500 5 0 0 0 0 0
cpu12 7 0 0 0 0 0 0 0 7 0
intr 1 2 3"""


def test_busy_ticks_are_those_of_the_bound_cores():
    assert machine.busy(STAT.splitlines(), {0}) == 60 + 30 + 1 + 2 + 3
    assert machine.busy(STAT.splitlines(), {0, 1}) == 96 + 65
    assert machine.busy(STAT.splitlines(), {12}) == 7  # guests are within user already


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
    assert machine.left(most, others, count) == threads


@pytest.mark.skipif(not machine._STAT.exists(), reason="no /proc/stat")
def test_the_work_of_others_is_seen():
    load = machine.Load()
    subprocess.run(
        [sys.executable, "-c", "import time; e = time.time() + 0.6\nwhile time.time() < e: pass"], check=True
    )
    assert load.others() > 0.2


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "_LOOK_SECONDS", -1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_fewer_threads_at_once_and_more_once_two_looks_agree(two_threads, monkeypatch):
    said = iter([0.0, 0.9, 0.0, 0.9, 0.0, 0.0, 0.0, 0.9])
    monkeypatch.setattr(machine.Load, "others", lambda load: next(said))
    found = []
    with machine.threads() as follower:
        for _ in range(8):
            follower.follow()
            found.append(torch.get_num_threads())
    assert found == [2, 1, 1, 1, 1, 2, 2, 1]


def test_who_decides_is_left_alone(two_threads, monkeypatch):
    monkeypatch.setattr(machine.Load, "others", lambda load: 2.0)
    for arguments in ({"number": 2}, {"fixed": True}):
        with machine.threads(**arguments) as follower:
            for _ in range(5):
                follower.follow()
            assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine.Threads().fixed


def test_afterwards_the_number_is_what_it_was(two_threads):
    with pytest.raises(KeyError), machine.threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("arguments", [{}, {"fixed": True}])
def test_a_container_of_fewer_cores_starts_with_fewer_threads(two_threads, monkeypatch, arguments):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    with machine.threads(**arguments):
        assert torch.get_num_threads() == 1
    with machine.threads(2):
        assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with machine.threads(**arguments):
        assert torch.get_num_threads() == 2
