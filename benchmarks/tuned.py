"""Tuned plans beside the default, on noise that they were not fitted to: distance to the exact ODE map.

    python benchmarks/tuned.py                      # 2 targets x 4 laws x 5 numbers of calls, on each law by itself
    python benchmarks/tuned.py --targets 2d --seeds 0
    python benchmarks/tuned.py --noise 1 --targets 2d --calls 6 10 --points 1500 --seeds 0 1

`sf.tune` sees the model alone, as on a trained network, and draws its own noise; the distances are those of
`solver_targets` on its cached noise, pooled over the laws. "asked" is a third of the best library's RMS in 2-D and half
of its median in 64-D, from a survey of six libraries with the best solver and grid of each. With --noise, stochastic
plans: the sliced distance of their samples, drawn without the paths that they were fitted along, to exact samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
import solver_targets as targets
from record import HERE, commit, hardware
from sfumato import noise, solvers
from stochastic import exact, sliced

ASKED = {
    "2d": ("rms", {5: 0.068 / 3, 8: 0.033 / 3, 10: 0.021 / 3, 15: 0.0055 / 3, 20: 0.0026 / 3}),
    "64d": ("median", {5: 0.042 / 2, 8: 0.012 / 2, 10: 0.0075 / 2, 15: 0.0030 / 2, 20: 0.0016 / 2}),
}


def cell(target: str, levels: str, calls: int, seeds: list[int]) -> dict[str, Any]:
    """RMS and median of the tuned plans and of the default, over all laws, and the seconds of a fit."""
    curve = targets.schedule_of(levels)
    start, stop = targets.span(curve, levels)
    gaps, seconds = [], []
    for seed in seeds:
        clock = time.process_time()
        plan = sf.tune(targets.Exact(target, seed, curve), calls, t_start=start, t_stop=stop)
        seconds.append(time.process_time() - clock)
        gaps.append(targets.distances(plan, target, levels, seeds=[seed]))
    rms, median = targets.summary(torch.cat(gaps))
    plain = targets.errors(solvers.default(exact=True), target, levels, calls, seeds=seeds)
    figure, asked = ASKED[target]
    return {
        "target": target, "levels": levels, "calls": calls, "rms": rms, "median": median, "default": plain,
        "asked": {figure: asked[calls]}, "cpu_seconds_of_a_fit": sorted(seconds)[len(seconds) // 2],
    }  # fmt: skip


def noisy_cell(target: str, levels: str, calls: int, args: argparse.Namespace) -> dict[str, Any]:
    """Sliced distance to exact samples: of the tuned plan, of the untuned one, of other exact samples."""
    curve = targets.schedule_of(levels)
    start, stop = targets.span(curve, levels)
    (high, low), found = targets.RANGES[levels], []
    for seed in args.seeds:
        model = targets.Exact(target, seed, curve)
        fit = {"noise": args.noise, "t_start": start, "t_stop": stop, "points": args.points, "batch": 1000}
        plans = [sf.tune(model, calls, rounds=rounds, **fit) for rounds in (0, 40)]
        fresh = exact(target, seed, targets.POINTS, low, draw=1)
        w = high * noise.normal(seed, torch.arange(targets.POINTS), model.shape, noise.DATA, dtype=torch.float64)
        ends = [exact(target, seed, targets.POINTS, low, draw=2)]
        for plan in plans:
            ends.append(sf.sample(model, solver=plan, z=w * curve.alpha(start), seed=seed) / plan.path[-1][0])
        found.append([sliced(end.double(), fresh) for end in ends])
    floor, untuned, tuned = torch.tensor(found).mean(0).tolist()
    row = {"target": target, "levels": levels, "calls": calls, "tuned": tuned, "untuned": untuned, "exact": floor}
    print(f"| {target}, {levels} | {calls} | {tuned:.3f} | {untuned:.3f} | {floor:.3f} |", flush=True)
    return row


def line(row: dict[str, Any]) -> str:
    ((figure, asked),) = row["asked"].items()
    return (
        f"| {row['target']}, {row['levels']} | {row['calls']} | {row['rms']:.2g} | {row['default'][0]:.2g} "
        f"| {row['median']:.2g} | {row['default'][1]:.2g} | {figure} {asked:.2g} | {row['cpu_seconds_of_a_fit']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(ASKED), choices=list(ASKED))
    parser.add_argument("--levels", nargs="+", default=["ddpm"], choices=list(targets.RANGES))
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 8, 10, 15, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(targets.SEEDS))
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/tuned[-noise].json")
    parser.add_argument("--noise", type=float, default=0.0, help="of the reverse SDE: stochastic plans")
    parser.add_argument("--points", type=int, help="that a stochastic plan is fitted to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or HERE / "results" / ("tuned-noise.json" if args.noise else "tuned.json")
    rows = []
    plain = "| | calls | tuned RMS | default | tuned median | default | asked | CPU s of a fit |"
    head = "| | calls | tuned | untuned | exact |" if args.noise else plain
    print(f"{head}\n{'|---' * (head.count('|') - 1)}|")
    for target, levels, calls in itertools.product(args.targets, args.levels, args.calls):
        if args.noise:
            rows.append(noisy_cell(target, levels, calls, args))
        else:
            rows.append(cell(target, levels, calls, args.seeds))
            print(line(rows[-1]), flush=True)
        report = {"commit": commit(), "hardware": hardware(), "seeds": args.seeds, "rows": rows}
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
