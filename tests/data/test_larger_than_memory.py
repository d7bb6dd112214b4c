"""A corpus several times the memory that a process may take is trained on."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

CODE = """
import json, resource, sys
from pathlib import Path
import torch
import sfumato as sf
from sfumato.data import statistics
from sfumato.training.console import Silent

statistics.CHUNK_ENTRIES = 1 << 18  # less scratch than usual, so that the corpus need not be larger than this one
torch.set_num_threads(1)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
own = 1024 * int(status["VmData"].split()[0])
allowed = own + int(sys.argv[3])  # bytes of memory beyond what the libraries take
resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
how = {"steps": 4, "batch": 8, "net": "tiny", "precision": "float32", "snapshots": 0, "console": Silent()}
run = sf.train(sys.argv[1], out=sys.argv[2], workers=1, **how)
source = sf.data.open(sys.argv[1])
try:
    torch.zeros(source.x.numel(), dtype=torch.uint8)
    held = True
except RuntimeError:
    held = False
lines = [line["loss"] for line in run.metrics if "loss" in line]
print(json.dumps({"bytes": source.x.nbytes, "held": held, "kind": type(source.x).__name__, "losses": lines}))
"""
ALLOWED, TIMES, SIDE = 320 << 20, 3, 128


def noise_tar(path, count, side):
    """Pictures of noise, uncompressed, each with other pixels behind the same header."""
    file, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(file, "BMP")
    header = file.getvalue()[: -3 * side * side]
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            info = tarfile.TarInfo(f"{i:05d}.bmp")
            info.size = file.tell()
            archive.addfile(info, io.BytesIO(header + rng.bytes(3 * side * side)))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is counted as Linux does")
@pytest.mark.parametrize("cached", [True, False])
def test_a_corpus_of_three_times_the_memory_trains(tmp_path, cached):
    noise_tar(tmp_path / "x.tar", TIMES * ALLOWED // (3 * SIDE * SIDE) + 1, SIDE)
    env = {**os.environ, "SFUMATO_CACHE": str(tmp_path / "cache") if cached else "off"}
    words = [sys.executable, "-c", CODE, str(tmp_path / "x.tar"), str(tmp_path / "run"), str(ALLOWED)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["bytes"] >= TIMES * ALLOWED and not found["held"] and len(found["losses"]) == 4
    assert found["kind"] == ("Mapped" if cached else "Pictures")
    assert all(np.isfinite(loss) for loss in found["losses"])
