"""Memory that is free: of the machine, of a container, and under a limit of the process."""

import subprocess
import sys

import psutil
import pytest

from sfumato import machine


@pytest.mark.parametrize(
    ("most", "left"), [("max", float("inf")), ("5000", 5000 - 3000 + 700)], ids=["no limit", "a limit"]
)
def test_a_container_leaves_what_is_not_used_and_what_is_only_cached(tmp_path, monkeypatch, most, left):
    (tmp_path / "memory.max").write_text(most + "\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2300\nfile 700\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine._container() == left
    assert machine.available() <= left


@pytest.mark.skipif(not hasattr(psutil.Process(), "rlimit"), reason="no limits of processes here")
def test_a_limit_of_the_process_counts():
    code = (
        "import psutil\nfrom sfumato import machine\nown = psutil.Process()\n"
        "most = own.memory_info().data + (64 << 20)\nown.rlimit(psutil.RLIMIT_DATA, (most, most))\n"
        "print(int(machine.available()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 64 << 20


def test_the_largest_memory_is_known_after_it_was_given_back():
    block = bytearray(b"1") * (128 << 20)
    with_block = psutil.Process().memory_info().rss
    del block
    assert machine.peak_memory() > with_block - (8 << 20)  # as exactly as the kernel counts pages
