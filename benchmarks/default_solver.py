"""The default solver for networks beside its neighbours: distance to a network's own fine solve.

    OMP_NUM_THREADS=1 python benchmarks/default_solver.py runs/demo [--images 12]

Walks from t = 1 to 0 as `sf.sample` makes them, labels in turn; RMS to a solve of 100 steps. The candidates are order 4
with a corrector under three limits of amplification on four grids; the first row is the default. Prints a table and
writes results/default_solver.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.solvers import Multistep, default, grids

CALLS = (5, 8, 10, 15, 20, 35)
GRIDS = {
    "share .1, noise .3": grids.FlowTime(share=0.1, noise=0.3),
    "share .23, noise .2": grids.FlowTime(share=0.23, noise=0.2),
    "share .15, middle .1, noise .15": grids.FlowTime(share=0.15, middle=0.1, noise=0.15),
    "auto": grids.auto(),
}


def candidates() -> dict[str, Multistep]:
    found = {"default": default()}
    for name, grid in GRIDS.items():
        for most in (2.5, 4.0, 7.3):
            found[f"{most:g} on {name}"] = Multistep(
                order=4, corrector=4, start="low", end="near", amplification=most, grid=grid
            )
    return found


def end(model: Any, solver: Multistep, steps: int, z: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        for state in solver.plan(model.process, steps).run(model, z, **cond):
            last = state.z
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=12)
    options = parser.parse_args()
    model = sf.load(str(options.run))
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(options.images, *model.shape, generator=draw) * float(model.process.schedule.sigma(1.0))
    classes = len(model.spec.classes)
    cond = {"label": torch.arange(options.images) % classes} if classes else {}
    fine_solver = Multistep(order=4, corrector=4, start="low", end="near", amplification=7.3)
    rows: list[dict[str, Any]] = []
    for scale in (1.0, 2.5) if classes else (1.0,):
        asked = model if scale == 1 else sf.guide(model, scale)
        fine = end(asked, fine_solver, 100, z, cond)
        print(f"guidance {scale:g}\n{'':42s}" + "".join(f"{calls:>8d}" for calls in CALLS), flush=True)
        for name, solver in candidates().items():
            gaps = [float((end(asked, solver, n, z, cond) - fine).square().mean().sqrt()) for n in CALLS]
            rows.append({"guidance": scale, "solver": name, "rms": dict(zip(CALLS, gaps, strict=True))})
            print(f"{name:42s}" + "".join(f"{gap:8.4f}" for gap in gaps), flush=True)
    told = {"hardware": hardware(), "commit": commit(), "run": options.run.name, "images": options.images, "rows": rows}
    (HERE / "results/default_solver.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
