"""Tensors that processes show each other in memory that they share: torchrun starts three."""

import subprocess
import sys

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
SHOWN = """
import torch
from sfumato import shared_memory
from sfumato.shared_memory import PIECE, SharedMemory
from sfumato.world import joined

with joined("cpu", 60) as world:
    memory = world.memory
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.bool):
        # less than a piece, one, and more than two pieces that end within one; more turns than there are places
        for count in (1, 3, PIECE // dtype.itemsize, 2 * PIECE // dtype.itemsize + 5):
            make = [torch.Generator().manual_seed(r) for r in range(world.size)]
            each = [(4 * torch.rand(count, 1, generator=g)).to(dtype) for g in make]
            assert torch.equal(world.whole(each[world.rank]), torch.cat(each)), (dtype, count)
            own = each[world.rank].clone()
            if dtype is not torch.bool:
                assert memory.mean(own) is own
                assert torch.equal(own, (each[0] + each[1] + each[2]) / 3), (dtype, count)
    assert world.whole(torch.zeros(0, 4)).shape == (0, 4)
    if world.rank == 2:  # as if it were elsewhere
        shared_memory._seen = lambda *given: None
    assert SharedMemory.of(world.rank, world.size) is None
"""


def test_all_see_what_each_shows_and_none_has_memory_that_one_does_not_see(tmp_path):
    script = tmp_path / "shown.py"
    script.write_text(SHOWN)
    done = subprocess.run([*LAUNCH, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
