"""Stochastic solvers beside their public versions: sliced Wasserstein distance to exact samples, by number of calls.

    pip install diffusers k-diffusion
    python benchmarks/stochastic.py

The targets of `solver_targets`, sigma/alpha from 157 to 0.01. Every solver walks from the same number of fresh starts;
its ends are compared with fresh samples of the law at the last level, and the floor is that distance between two sets
of exact samples. Every solver has the best of four grids in each cell, ours also stands on its own default. Mean of the
seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import solver_peers
import solver_targets as targets
from record import HERE, commit, hardware
from sfumato import solvers
from solvers import GRIDS, nodes, sigmas

F64 = torch.float64
Draw = Callable[[int, Tensor], Tensor | None]  # (seed of the law, start) to the ends
Run = Callable[[int, int, Tensor], Tensor | None]  # the same, the number of calls first
OURS = {
    "churn": solvers.Churn(),
    "SDE-DPM-Solver++ 2M": solvers.SDEDPMSolver(2),
    "SDE-DPM-Solver++ 3M": solvers.SDEDPMSolver(3),
    "SA-Solver 2": solvers.SASolver(2, 2),
    "SA-Solver 3": solvers.SASolver(3, 3),
    "ancestral (DDPM)": solvers.DDPM(solvers.grids.auto()),
    "Euler-Maruyama": solvers.EulerMaruyama(grid=solvers.grids.auto()),
    "predictor-corrector": solvers.PredictorCorrector(),
    "annealed Langevin": solvers.AnnealedLangevin(),
}


def sliced(a: Tensor, b: Tensor, directions: int = 256) -> float:
    """Root of the mean over directions of the squared Wasserstein-2 distance of the projections."""
    u = torch.randn(a.shape[1], directions, dtype=F64, generator=torch.Generator().manual_seed(0))
    u = u / u.norm(dim=0)
    return float(((a @ u).sort(0).values - (b @ u).sort(0).values).square().mean().sqrt())


def exact(target: str, seed: int, points: int, low: float, draw: int) -> Tensor:
    """Fresh samples of x + low eps."""
    x = targets.law(target, seed).mixture().sample(points, seed=draw)
    return x + low * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(draw))


def ours(solver: solvers.Solver, target: str, levels: str, calls: int, seed: int, start: Tensor) -> Tensor | None:
    curve = targets.schedule_of(levels)
    plan = targets.with_calls(solver, curve, levels, calls)
    if not isinstance(plan, solvers.Plan) or plan.calls > calls:
        return None
    walk = plan.run(targets.Exact(target, seed, curve), start.clone(), lambda k, z: torch.randn_like(z))
    *_, last = walk
    return last.z / plan.path[-1][0]


def theirs(
    peer: solver_peers.Peer, grid: str, target: str, levels: str, calls: int, seed: int, start: Tensor
) -> Tensor | None:
    (high, low), law = targets.RANGES[levels], targets.law(target, seed)
    count = nodes(peer, calls)
    if count < 2:
        return None

    def denoise(w: Tensor, sigma: float) -> Tensor:
        one = torch.ones(len(w), 1, dtype=F64)
        return law.moments(w, one, sigma * one)[0]

    return peer.run(denoise, start.clone(), sigmas(grid, high, low, count - 1))


def distance(run: Draw, target: str, levels: str, seeds: list[int], n: int) -> float:
    """Mean over the laws; infinite where the solver cannot run or does not end."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        high, low = targets.RANGES[levels]
        dim = targets.law(target, seed).means.shape[1]
        end = run(seed, high * torch.randn(n, dim, dtype=F64))
        if end is None or not bool(end.isfinite().all()):
            return math.inf
        found.append(sliced(end, exact(target, seed, n, low, draw=1)))
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(targets.TARGETS))
    parser.add_argument("--levels", default="ddpm")
    parser.add_argument("--calls", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "stochastic.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    low = targets.RANGES[args.levels][1]
    rows = []
    for target in args.targets:
        common = (target, args.levels, args.seeds, args.points)
        floor = distance(lambda seed, z, t=target: exact(t, seed, len(z), low, draw=2), *common)
        print(f"\n{target}: exact against exact {floor:.4f}\n| | {' | '.join(map(str, args.calls))} |")
        print("|---" * (len(args.calls) + 1) + "|")
        runs: dict[str, dict[str, Run]] = {}
        for name, solver in OURS.items():
            runs[f"sfumato, {name}"] = {"default": functools.partial(ours, solver, target, args.levels)}
            gridded = {grid: dataclasses.replace(solver, grid=rule) for grid, rule in GRIDS.items()}
            runs[f"sfumato, {name}, best grid"] = {
                grid: functools.partial(ours, one, target, args.levels) for grid, one in gridded.items()
            }
        for peer in solver_peers.stochastic():
            runs[f"{peer.library}, {peer.name}"] = {
                grid: functools.partial(theirs, peer, grid, target, args.levels) for grid in GRIDS
            }
        for who, some in runs.items():
            best = {
                calls: min((distance(functools.partial(run, calls), *common), grid) for grid, run in some.items())
                for calls in args.calls
            }
            cells = {calls: value for calls, (value, _) in best.items()}
            grids = {calls: grid for calls, (_, grid) in best.items()}
            rows.append({"target": target, "who": who, "floor": floor, "distance": cells, "grids": grids})
            print(f"| {who} | {' | '.join(f'{v:.4f}' for v in cells.values())} |", flush=True)
        report = {"commit": commit(), "hardware": hardware(), "seeds": args.seeds, "points": args.points, "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
