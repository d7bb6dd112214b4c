"""The batch script, with a SLURM that runs what it is told at once: a job that is cut queues again and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sfumato.folder import read
from sfumato.training import checkpoint

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm.sbatch"


@pytest.fixture
def cluster(tmp_path):
    """srun runs its words, torchrun is this Python's, scontrol writes down what it was asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "srun": 'exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/asked',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"}
    return tmp_path, env


def job(place: Path, env: dict[str, str], processes: int) -> subprocess.Popen:
    words = [str(place / "x.npy"), str(place / "run"), "--steps", "400", "--batch", "8", "--net", "tiny"]
    words += ["--checkpoint-every", "0.001", "--sample-every", "0", "--precision", "float32"]
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words], env={**env, "PROCESSES": str(processes)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_is_cut_queues_again_and_goes_on(cluster, processes):
    place, env = cluster
    first, limit = job(place, env, processes), time.monotonic() + 90
    while len(checkpoint.found(place / "run")) < 2 and first.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    first.send_signal(signal.SIGUSR1)
    said, _ = first.communicate(timeout=90)
    assert first.returncode == 0, said[-2000:]
    assert (place / "asked").read_text() == "requeue 7\n"
    reached = checkpoint.latest(place / "run")[0]["counters"]["step"]
    assert 0 < reached < 400
    second = job(place, env, processes)
    said, _ = second.communicate(timeout=180)
    assert second.returncode == 0 and f"Resuming from step {reached:,}" in said, said[-2000:]
    assert checkpoint.latest(place / "run")[0]["counters"]["step"] == 400
    assert (place / "asked").read_text() == "requeue 7\n"
    steps = [line["step"] for line in read(place / "run" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 400
