"""A limit to memory that can be caught, and that follows what is given back."""

import subprocess
import sys
from pathlib import Path

import pytest

PINNED = """
import mmap, torch
from sfumato.machine import kept, memory

MIB = 1 << 20
memory.available = lambda: 256.0 * MIB
free = lambda: max(0, 256 - held())  # of 256 MiB, as if the machine had no more
held = lambda: (memory.held(largest=False) - start) >> 20

def reserved():
    try:
        mmap.mmap(-1, 40 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        return True
    except OSError:
        return False

start = memory.held(largest=False)
with kept.kept_memory(torch.device("cpu")), memory.limited():
    memory.available = lambda: float(free() * MIB)
    blocks = []
    try:
        while True:
            blocks.append(torch.zeros(8 * MIB, dtype=torch.uint8))
    except RuntimeError as error:
        print("DefaultCPUAllocator" in str(error))
    pin = blocks.pop()  # the last stays, and all before it are free
    many = len(blocks)
    blocks.clear()
    full = held()
    print(many > 20, reserved())
    kept.released()
    print(reserved(), full - held() > 150)
    try:  # what is free is all that there is, twice of it is not
        print(torch.zeros(500 * MIB, dtype=torch.uint8))
    except RuntimeError:
        print("limited")
print(torch.zeros(500 * MIB, dtype=torch.uint8).sum().item())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a limit to memory is Linux's")
def test_what_is_given_back_can_be_taken_otherwise():
    """A block in use at the end of the heap keeps all before it reserved, though it is free."""
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False", "True", "True", "limited", "0"], (done.stdout, done.stderr)
