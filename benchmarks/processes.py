"""Training throughput of two processes with one thread each beside one process with one thread.

    python benchmarks/processes.py                       # the demo's network and batch, on a machine that is idle
    python benchmarks/processes.py --net base --shape 3 32 32 --out results/processes-base.json
    python benchmarks/processes.py --net base --shape 3 32 32 --grow --parallel fsdp

They share the same global batch, or with --grow each has as much as one alone. Runs of `sfumato.training.fit`
(no validation, all averages), one after the other in turn, each in processes of its own. A run's figure is its median
time a step after the first ones; the table has the median run of each. `cpu` is processor time a step of the busiest
process: what a step costs where nobody waits, and all that can be read of a machine that does something else too. Parts
are seconds a step of the first process; what it waits for the others is within the part that asks them: gradients
(backward, all-reduce), and in shards optimiser (updates are gathered).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from record import HERE, commit, hardware
from sfumato import nets, noise
from sfumato.distributed import joined
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit, loop
from sfumato.training.precision import compute_dtype

SKIPPED = 5  # first steps of a run, which allocate


def work(args: argparse.Namespace) -> None:
    """One process of a run; leaves its figures in the folder."""
    torch.manual_seed(0)
    with joined("cpu") as world:
        shape = tuple(args.shape)
        model = Denoiser(nets.build(shape, classes=10, size=args.net), Gaussian(Flow()), "velocity")
        model.compute_dtype = compute_dtype(args.precision, torch.device("cpu"))
        x = noise.normal(0, range(512), shape, noise.DATA)
        config = TrainConfig(
            steps=args.steps + SKIPPED, batch=args.batch, precision=args.precision, parallel=args.parallel, threads=1
        )
        state = State(model, config, world=world)
        spent: dict[str, float] = {}
        for owner, name, part in (
            (loop, "gradients", "gradients"), (loop, "clip", "clip"), (state.optimizer, "step", "optimiser"),
            (loop, "finite", "check"), (state, "average", "averages"),
        ):  # fmt: skip
            setattr(owner, name, timed(getattr(owner, name), spent, part))
        walls, processor = [], 0.0
        last, used = time.perf_counter(), time.process_time()
        for progress in fit(model, x, config, torch.arange(512) % 10, state=state, world=world):
            now = time.perf_counter()
            walls.append(now - last)
            last = now
            if progress.step == SKIPPED:
                spent.clear()
                used = time.process_time()
        processor = time.process_time() - used
        parameters = sum(p.numel() for p in state.parameters)
    found = {
        "seconds": statistics.median(walls[SKIPPED:]), "cpu": processor / args.steps, "parameters": parameters,
        "parts": {name: value / args.steps for name, value in spent.items()},
    }  # fmt: skip
    (Path(args.worker) / f"{world.rank}.json").write_text(json.dumps(found))


def timed(function: Any, spent: dict[str, float], part: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            for name, value in ((part, time.perf_counter() - start), (f"{part} cpu", time.process_time() - used)):
                spent[name] = spent.get(name, 0.0) + value

    return call


def whole(processes: int, args: argparse.Namespace) -> int:
    """The global batch."""
    return args.batch * (processes if args.grow else 1)


def run(processes: int, args: argparse.Namespace) -> dict[str, Any]:
    """A run of so many processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        given = [
            "--worker", folder, "--steps", args.steps, "--batch", whole(processes, args), "--net", args.net,
            "--precision", args.precision, "--parallel", args.parallel, "--shape", *args.shape,
        ]  # fmt: skip
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words = [*start, str(Path(__file__).resolve()), *map(str, given)]
        done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        each = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]
    slowest = max(one["seconds"] for one in each)
    return {**each[0], "processes": processes, "seconds": slowest, "cpu": max(one["cpu"] for one in each)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--net", choices=("tiny", "small", "base"), default="small")
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 28, 28])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--grow", action="store_true", help="the batch grows with the processes")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "processes.json")
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    measured = commit()
    runs = [run(n, args) for _ in range(args.rounds) for n in args.processes]
    table = []
    for n in args.processes:
        of = sorted((r for r in runs if r["processes"] == n), key=lambda r: r["seconds"])
        middle = of[len(of) // 2]
        cpu = statistics.median(r["cpu"] for r in of)
        table.append({**middle, "cpu": cpu, "rate": whole(n, args) / middle["seconds"]})
        first, words = table[0], f"{n} process{'es' if n > 1 else ''}"
        named = [name for name in middle["parts"] if not name.endswith(" cpu")]
        each = ((name, middle["parts"][name], middle["parts"][f"{name} cpu"]) for name in named)
        parts = "  ".join(f"{name} {1e3 * wall:.1f} ({1e3 * cpu:.1f})" for name, wall, cpu in each)
        faster = table[-1]["rate"] / first["rate"]
        print(f"{words}: {table[-1]['rate']:.1f} samples/s (x{faster:.2f}), {1e3 * middle['seconds']:.1f} ms a step")
        cheaper = first["cpu"] / cpu * whole(n, args) / args.batch
        print(f"  processor {1e3 * cpu:.1f} ms (x{cheaper:.2f}); parts, ms (processor): {parts}")
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "worker")}
    report = {"commit": measured, "settings": settings, "hardware": hardware(), "table": table, "runs": runs}
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
