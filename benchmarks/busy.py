"""What a core that does something else costs training and sampling: fixed threads beside those of the command line.

    python benchmarks/busy.py [--seconds 20]

A process that counts keeps one core busy. With a fixed number of threads each operation waits for the thread that
shares its core; in `sfumato train` and `sample` the number follows what others leave. Each case has a process of its
own and some seconds; the figure is samples a second (training) and network calls of 64 samples a second (sampling).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.cli.process import Follower
from sfumato.nets import build
from sfumato.schedule import schedule_of
from sfumato.training import TrainConfig
from sfumato.training.loop import fit
from sfumato.training.precision import compute_dtype

CASES = [
    ("one thread", "1", False), ("all threads", "all", False), ("following", "following", False),
    ("one thread", "1", True), ("all threads", "all", True), ("following", "following", True),
]  # fmt: skip


@contextmanager
def load(busy: bool) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    other = subprocess.Popen(command) if busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def one(work: str, threads: str, seconds: float) -> float:
    """The rate of a case in this process."""
    if threads == "1":
        torch.set_num_threads(1)
    config = TrainConfig(minutes=seconds / 60)
    model = sf.Denoiser(build((1, 28, 28)), sf.Gaussian(schedule_of(config.schedule)), config.target, 1.0)
    model.compute_dtype = compute_dtype("auto", model.device)
    if threads == "following":
        follow = Follower()
        model.net.register_forward_pre_hook(lambda *_: follow())
    if work == "train":
        return [progress.rate for progress in fit(model, torch.randn(6400, 1, 28, 28), config)][-1]
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        sf.sample(model, n=64, steps=60, solver=sf.solvers.Euler())
        calls += 60
    return calls / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one(*options.one, options.seconds))
        return
    result = {"commit": commit(), "hardware": hardware(), "seconds": options.seconds, "rows": []}
    for work in ("train", "sample"):
        alone = 0.0
        for name, threads, busy in CASES:
            with load(busy):
                words = ["--one", work, threads, "--seconds", str(options.seconds)]
                done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
            rate = float(done.stdout.split()[-1])
            alone = alone or rate
            result["rows"].append({"work": work, "threads": name, "busy": busy, "rate": rate, "of_one": rate / alone})
            where = "beside a busy core" if busy else "alone"
            print(f"{work:8}{name:14}{where:20}{rate:10.1f}{rate / alone:8.2f} of one thread alone", flush=True)
    (HERE / "results" / "busy.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
