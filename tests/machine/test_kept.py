"""Memory that stays with the process while it works."""

import subprocess
import sys

import pytest

from sfumato.machine import kept

FAULTS = """
import ctypes, resource, torch
from sfumato.machine.kept import kept_memory
from sfumato.machine.memory import held

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.zeros(count).add_(1) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

LARGE, SMALL = 4 << 20, 1 << 16
ctypes.CDLL(None).mallopt(-3, 128 << 10)  # what glibc starts with, before the sizes that are freed raise it
free, small = faults(LARGE), faults(SMALL)
with kept_memory(torch.device("cpu")):
    faults(LARGE)
    with kept_memory(torch.device("cpu")):
        pass
    kept, resident = faults(LARGE), held(largest=False)
print(free, small, kept, resident - held(largest=False), faults(SMALL))
"""


@pytest.mark.skipif(kept._libc() is None, reason="not glibc")
def test_kept_memory_is_not_mapped_anew_and_given_back():
    """Six tensors of 16 MiB, five times; afterwards those of 256 KiB are not mapped one by one."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    free, small, kept, back, after = map(int, done.stdout.split())
    assert kept < free / 10
    assert back > 80 << 20
    assert after < small / 2
