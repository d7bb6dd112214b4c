"""Means over processes through memory that they share: torchrun starts three."""

import subprocess
import sys

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
MEANS = """
import os, sys
import torch
from sfumato.training import shared_memory
from sfumato.training.shared_memory import PIECE, SharedMean
from sfumato.world import joined

with joined("cpu", 60) as world:
    memory = SharedMean.of(world)
    assert memory is not None and not [f for f in os.listdir("/proc/self/fd") if "memfd" in shown(f)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        # less than a piece, one, and more than three pieces that end within one; more turns than there are places
        for count in (1, 3, PIECE // dtype.itemsize, 3 * PIECE // dtype.itemsize + 5):
            each = [torch.rand(count, generator=torch.Generator().manual_seed(r)).to(dtype) for r in range(world.size)]
            own = each[world.rank].clone()
            assert memory.mean(own) is own
            assert torch.equal(own, (each[0] + each[1] + each[2]) / 3), (dtype, count)
    if world.rank == 2:  # as if it were elsewhere
        shared_memory._seen = lambda *given: None
    assert SharedMean.of(world) is None
"""
SHOWN = """
def shown(f):
    try:
        return os.readlink(f"/proc/self/fd/{f}")
    except OSError:
        return ""
"""


def test_the_mean_is_that_of_all_and_one_that_does_not_see_the_memory_keeps_all_from_it(tmp_path):
    script = tmp_path / "means.py"
    script.write_text(MEANS.replace("import os, sys\n", "import os, sys\n" + SHOWN))
    done = subprocess.run([*LAUNCH, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
