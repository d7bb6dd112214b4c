"""Host cost of a sampling step above the denoiser's call, in microseconds, beside public libraries, in one run.

    python benchmarks/solver_cost.py

The denoiser returns what it holds ready, so that a walk's time is that of the loop and of the tensor arithmetic; the
bare calls are taken off. One thread; the least of many repeats, the candidates in turn, so that all see the same
machine. The floor is two operations in place (z *= a; z += b x). A library is driven as it is meant to be.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
import solver_peers
from record import HERE, commit, hardware
from sfumato import solvers
from sfumato.schedules import Cosine

SHAPES = ((1, 3, 8, 8), (64, 3, 32, 32))
STEPS = 50
Work = Callable[[], Any]
Case = tuple[str, int, Work, Work]  # (name, calls, the walk, the bare calls)

OURS = {
    "DDIM": solvers.DDIM(), "Euler": solvers.Euler(), "Multistep(1)": solvers.Multistep(1),
    "Multistep(2)": solvers.Multistep(2), "DPM-Solver++ (2M)": solvers.Multistep(2, "x", variable="logsnr"),
    "Multistep(3)": solvers.Multistep(3), "Multistep(3, corrector)": solvers.Multistep(3, corrector=3, start="low"),
    "the default (order 4, corrector)": solvers.default(exact=True),
}  # fmt: skip


def ours(shape: tuple[int, ...]) -> Iterator[Case]:
    curve, z = Cosine(), torch.randn(shape)
    belief = sf.Estimate(z, 0.5, curve, x=torch.randn(shape))

    class Ready:
        process = sf.Gaussian(curve)

        def __call__(self, z: Tensor, t: float) -> sf.Estimate:
            return belief

    model = Ready()
    for name, solver in OURS.items():
        plan = solver.plan(curve, STEPS)
        assert isinstance(plan, solvers.Plan)

        def walk(plan: solvers.Plan = plan) -> None:
            for _ in plan.run(model, z):
                pass

        def bare(plan: solvers.Plan = plan) -> None:
            for t in plan.times:
                model(z, t)

        yield f"sfumato {name}", plan.calls, walk, bare


def k_diffusion(shape: tuple[int, ...]) -> Iterator[Case]:
    if not any(solver_peers.k_diffusion()):
        return
    import k_diffusion.sampling as sampling

    x, ready = torch.randn(shape), torch.randn(shape)
    levels = sampling.get_sigmas_karras(STEPS, 0.01, 80.0)[:-1]
    calls = len(levels) - 1
    model = lambda x, sigma: ready  # noqa: E731
    ones = x.new_ones([len(x)])

    def bare() -> None:
        for _ in range(calls):
            model(x, ones)

    for name in ("euler", "dpmpp_2m", "lms"):
        sampler = getattr(sampling, f"sample_{name}")
        yield f"k-diffusion {name}", calls, lambda sampler=sampler: sampler(model, x, levels, disable=True), bare


def diffusers(shape: tuple[int, ...]) -> Iterator[Case]:
    if not any(solver_peers.diffusers()):
        return
    import diffusers as library

    for kind, options in (
        ("EulerDiscreteScheduler", {}), ("DDIMScheduler", {}), ("DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}), ("UniPCMultistepScheduler", {"solver_order": 2}),
        ("UniPCMultistepScheduler", {"solver_order": 3}), ("DEISMultistepScheduler", {"solver_order": 3}),
    ):  # fmt: skip
        order = "".join(f" order {v}" for v in options.values())
        name = f"diffusers {kind.removesuffix('Scheduler')}{order}"
        yield name, STEPS, *_scheduled(getattr(library, kind)(**options), shape)


def _scheduled(scheduler: Any, shape: tuple[int, ...]) -> tuple[Work, Work]:
    sample, ready = torch.randn(shape), torch.randn(shape)

    def start() -> Any:
        scheduler.set_timesteps(STEPS)
        scheduler.is_scale_input_called = True
        return scheduler.timesteps

    def walk() -> None:
        z = sample
        for t in start():
            z = scheduler.step(ready, t, z, return_dict=False)[0]

    def bare() -> None:
        for _ in start():
            pass

    return walk, bare


def azula(shape: tuple[int, ...]) -> Iterator[Case]:
    if not any(solver_peers.azula()):
        return
    from azula import denoise, noise, sample

    class Ready(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule, self.ready = noise.VPSchedule(), denoise.DiracPosterior(torch.randn(shape))

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return self.ready

    model, z, t = Ready(), torch.randn(shape), torch.tensor(0.5)

    def bare() -> None:
        for _ in range(STEPS):
            model(z, t)

    for name, options in (("DDIM", {}), ("Euler", {}), ("vAB", {"order": 2}), ("vAB", {"order": 3})):
        walk = getattr(sample, f"{name}Sampler")(model, steps=STEPS, silent=True, **options)
        order = "".join(f" order {v}" for v in options.values())
        yield f"azula {name}{order}", STEPS, lambda walk=walk: walk(z), bare


def measured(cases: list[Case], repeats: int) -> dict[str, float]:
    """Microseconds a call above the bare call: the least walk less the least bare loop."""
    least: dict[tuple[str, int], float] = {}
    for _ in range(repeats):
        for name, _, walk, bare in cases:
            for i, work in enumerate((walk, bare)):
                start = time.perf_counter()
                work()
                least[name, i] = min(least.get((name, i), 1e9), time.perf_counter() - start)
    return {name: 1e6 * (least[name, 0] - least[name, 1]) / calls for name, calls, _, _ in cases}


def floor(shape: tuple[int, ...], repeats: int) -> float:
    """Two operations in place."""
    z, x, least = torch.randn(shape), torch.randn(shape), 1e9
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(STEPS):
            z.mul_(0.999).add_(x, alpha=1e-4)
        least = min(least, (time.perf_counter() - start) / STEPS)
    return 1e6 * least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, nargs=2, default=(60, 15), help="walks of each, for either shape")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "solver_cost.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report: dict[str, Any] = {"commit": commit(), "hardware": hardware(), "steps": STEPS, "microseconds_a_step": {}}
    for shape, repeats in zip(SHAPES, args.repeats, strict=True):
        with torch.no_grad():
            cases = [case for make in (ours, k_diffusion, diffusers, azula) for case in make(shape)]
            found = {"floor: two operations in place": floor(shape, repeats), **measured(cases, repeats)}
        label = "x".join(map(str, shape))
        report["microseconds_a_step"][label] = found
        print(f"\n| {label} | microseconds a step |\n|---|---|")
        print("\n".join(f"| {name} | {value:.1f} |" for name, value in found.items()), flush=True)
    for library, why in solver_peers.MISSING.items():
        print(f"{library} is left out: {why}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
