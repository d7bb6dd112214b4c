"""Likelihood of a 64-D mixture: error and CPU time of `log_prob` and of flow_matching's exact divergence, in one run.

    pip install --no-deps flow_matching==1.0.10 torchdiffeq==0.2.5
    OMP_NUM_THREADS=1 python benchmarks/likelihood.py

The law is the 64-D target of `solver_targets` (10 components of rank 4, standard deviation 0.056 off them), the path
the linear one, and both libraries call the same function for E[x|z], in float64. The error is that of log p(x) against
the mixture's own, in nats (root of the mean square over the points). flow_matching is given each of its fixed-step
methods at several numbers of steps; on fewer points, where its error does not need a thousand, and then on all of
them where it first comes below the error asked for. The time is that of the process, of one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from record import HERE, commit, hardware
from solver_targets import law

METHODS = ("rk4", "midpoint")  # euler is far off at 400 steps
STEPS = (50, 100, 200, 400)


def clocked(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def rms(found: Tensor, true: Tensor) -> float:
    return float((found - true).square().mean().sqrt())


def theirs(target: int, x: Tensor, method: str, steps: int) -> Tensor:
    """flow_matching's log-likelihood; its time runs from the noise at 0 to the data at 1."""
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    source = law("64d", target)

    class Velocity(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            # the formula is 0/0 at both ends; sigma = exp(-6) is where `log_prob` starts as well
            t = t.clamp(1e-6, 1 - 1 / (1 + math.exp(6))).to(x.dtype)
            mean, eps = source.moments(x, t.reshape(1, 1), (1 - t).reshape(1, 1))
            return mean - eps

    def prior(z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))

    solver = ODESolver(Velocity(torch.nn.Identity()))
    return solver.compute_likelihood(x, prior, 1 / steps, method, exact_divergence=True)[1].detach()


class Optimal:
    """E[x|z] on the linear path as a model of which nothing else is known."""

    def __init__(self, target: int) -> None:
        self.law, self.process = law("64d", target), sf.Gaussian(sf.schedules.Flow())

    def __call__(self, z: Tensor, t: float, **cond: Any) -> sf.Estimate:
        alpha, sigma = (c.expand(len(z))[:, None] for c in self.process.schedule(t))
        x, eps = self.law.moments(z, alpha.clamp_min(1e-6), sigma)
        return sf.Estimate(z, t, self.process.schedule, x=x, eps=eps)


def rows(target: int, points: int, wanted: float, few: int) -> list[dict[str, Any]]:
    mixture, curve = law("64d", target).mixture(), sf.schedules.Flow()
    x = mixture.sample(points, seed=target)
    true = mixture.log_prob(x)
    models = {"closed form": mixture.denoiser(sf.Gaussian(curve)), "products": Optimal(target)}
    found = []

    def add(who: str, steps: int, error: float, seconds: float) -> None:
        found.append({"who": who, "steps": steps, "rms_nats": error, "cpu_s": seconds, "points": points})
        print(f"{who:<45} {steps:4d} steps  error {error:8.2g} nats  {seconds:8.1f} s", flush=True)

    for name, model in models.items():
        for steps in (28, 32, 48, 64):
            measured, seconds = clocked(lambda m=model, n=steps: sf.log_prob(m, x, steps=n, trace="exact").value)
            add(f"sfumato, exact trace by {name}", steps, rms(measured, true), seconds)
    for method in METHODS:
        for steps in STEPS:
            if rms(theirs(target, x[:few], method, steps), true[:few]) < wanted:
                measured, seconds = clocked(lambda m=method, n=steps: theirs(target, x, m, n))
                add(f"flow_matching, exact divergence, {method}", steps, rms(measured, true), seconds)
                break
        else:
            print(f"flow_matching, {method}: not below {wanted:g} nats in {STEPS[-1]} steps", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--few", type=int, default=20)
    parser.add_argument("--error", type=float, default=0.0145, help="nats that flow_matching is to come below")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "likelihood.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(args.target, args.points, args.error, args.few)
    report = {"commit": commit(), "target": args.target, "hardware": hardware(), "rows": found}
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
