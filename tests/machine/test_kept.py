"""Memory that stays with the process while it works."""

import subprocess
import sys

import pytest

from sfumato.machine import kept

FAULTS = """
import resource, torch
from sfumato.machine.kept import kept_memory
from sfumato.machine.memory import held

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.zeros(count).add_(1) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

LARGE, SMALL = 4 << 20, 1 << 16
faults(LARGE)
free, small = faults(LARGE), faults(SMALL)
with kept_memory(torch.device("cpu")):
    faults(LARGE)
    with kept_memory(torch.device("cpu")):
        pass
    kept, resident = faults(LARGE), held(largest=False)
print(free, small, kept, resident - held(largest=False), faults(LARGE), faults(SMALL))
"""


@pytest.mark.skipif(kept._libc() is None, reason="not glibc")
def test_kept_memory_is_not_mapped_anew_and_given_back():
    """Six tensors of 16 MiB, five times; afterwards large and small ones cost no more than before."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    free, small, kept, back, large_after, small_after = map(int, done.stdout.split())
    assert free > 20_000 and kept < free / 10
    assert back > 80 << 20
    assert large_after <= 1.01 * free and small_after <= small + 500
