"""Samples needed for a validation loss: noise levels drawn as the loss asks, beside uniform t, on Fashion-MNIST.

    OMP_NUM_THREADS=1 python benchmarks/adaptive.py

One loss, 1/2 int w(logsnr) E |eps - eps_hat|^2 dlogsnr per element, and one loop, network, learning rate and data order
for all; only the density that the noise levels are drawn from differs, and the loss divides by it. The validation loss
is that integral on held-out images, by the same (image, noise, level) triples for all, of the moving average of the
weights. `samples_to` is the first sample at which it is as low as uniform t ever got with the same seed.
It counts samples, not time, and may run beside other work.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from record import HERE, commit, hardware
from sfumato import noise
from sfumato.data import builtin
from sfumato.objectives import times, weights
from sfumato.objectives.losses import Denoising
from sfumato.objectives.times import TimeDensity
from sfumato.training import State, TrainConfig, fit

DENSITIES: dict[str, Callable[[], TimeDensity]] = {
    "uniform": times.uniform,
    "uniform-logsnr": times.uniform_logsnr,
    "adaptive": times.adaptive,
    "variance-optimal": times.variance_optimal,
}
SETUPS: dict[str, tuple[sf.schedules.Schedule, Callable[[], weights.Weight]]] = {
    "cosine, elbo": (sf.schedules.Cosine(), weights.elbo),
    "flow, sigmoid": (sf.schedules.Flow(), weights.sigmoid),
}
HELD = 512


def images() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST in mean 0 and standard deviation 1: what is trained on, and what is held out."""
    x = builtin.load("fashion").x.float()
    x = (x - x.mean()) / x.std()
    return x[HELD:], x[:HELD]


class Judge:
    """The weighted loss by fixed triples (image, noise, level), the levels stratified over logsnr."""

    def __init__(self, x: Tensor, schedule: sf.schedules.Schedule, weight: weights.Weight) -> None:
        lo, hi = times.limits(schedule)
        index = torch.arange(len(x))
        self.x = x
        # strata fill the range; the images go through them in an order of their own
        place = (noise.permutation(1, 0, len(index)) + 0.5) / len(index)
        lam = hi + (lo - hi) * place.double()
        self.index, self.lam, self.weight = index, lam, weight
        self.t, self.scale = schedule.time(lam), (hi - lo) / len(index)

    @torch.no_grad()
    def __call__(self, denoiser: sf.Denoiser) -> float:
        total = 0.0
        for part in self.index.split(256):
            x = self.x[part]
            eps = noise.normal(9, part, tuple(x.shape[1:]), noise.VALID_NOISE)
            z = denoiser.process.corrupt(x, self.t[part], eps)
            error = (denoiser(z, self.t[part]).eps - eps).flatten(1).double().square().mean(1)
            total += float((self.weight(self.lam[part]) * error).sum())
        return 0.5 * total * self.scale


def run(setup: str, density: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training run and its validation losses."""
    schedule, weight = SETUPS[setup]
    x, held = images()
    torch.manual_seed(seed)
    net = sf.nets.build((1, 28, 28), size="tiny")
    denoiser = sf.Denoiser(net, sf.Gaussian(schedule), "v")
    steps = args.samples // args.batch
    config = TrainConfig(
        steps=steps, batch=args.batch, decay=0.0, lr=args.lr, clip=args.clip, seed=seed, precision="float32"
    )
    state = State(denoiser, config, Denoising(DENSITIES[density](), weight(), seed))
    judge, every = Judge(held, schedule, weight()), args.every // args.batch
    curve, norms = [], []
    for progress in fit(denoiser, x, config, state=state):
        if progress.grad_norm is not None:
            norms.append(progress.grad_norm)
        if progress.step % every == 0:
            curve.append((progress.samples, judge(state.best.eval())))
    found = [loss for _, loss in curve]
    print(f"{setup:<14} {density:<17} seed {seed}:", *(f"{v:.4f}" for v in found), flush=True)
    return {
        "setup": setup,
        "density": density,
        "seed": seed,
        "curve": curve,
        "grad_norm": math.fsum(norms) / len(norms),
    }


def second_moments(setup: str, args: argparse.Namespace) -> dict[str, float]:
    """E_p (l / p)^2 of each density over the least there is, by the bins of l^2 on a network trained a while."""
    schedule, weight = SETUPS[setup]
    torch.manual_seed(0)
    denoiser = sf.Denoiser(sf.nets.build((1, 28, 28), size="tiny"), sf.Gaussian(schedule), "v")
    config = TrainConfig(steps=args.samples // args.batch, batch=args.batch, decay=0.0, lr=args.lr, precision="float32")
    learned = times.variance_optimal()
    for _ in fit(denoiser, images()[0], config, loss=Denoising(learned, weight(), 0)):
        pass
    lo, hi = times.limits(schedule)
    lam = hi + (lo - hi) * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    root = learned.heights[((15 - lam) / 30 * learned.bins).long()]
    least = float(root.mean() * (hi - lo)) ** 2
    found = {}
    for name, make in DENSITIES.items():
        density = learned if name == "variance-optimal" else make()
        if name != "adaptive":
            found[name] = float((root**2 / density.density(lam, schedule)).mean() * (hi - lo)) / least
    print(f"{setup:<14} E (l/p)^2 over the least:", *(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def samples_to(curve: list[tuple[int, float]], wanted: float) -> float | None:
    """Where the loss first comes down to `wanted`, on the line between two measurements; None if it does not."""
    before: tuple[int, float] | None = None
    for samples, loss in curve:
        if loss <= wanted:
            if before is None:
                return float(samples)
            return before[0] + (samples - before[0]) * (before[1] - wanted) / (before[1] - loss)
        before = samples, loss
    return None


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each density against uniform t of the same seed: the least loss, and the samples to uniform t's least."""
    found = []
    base = {(r["setup"], r["seed"]): min(loss for _, loss in r["curve"]) for r in rows if r["density"] == "uniform"}
    for setup in SETUPS:
        for density in DENSITIES:
            runs = [r for r in rows if (r["setup"], r["density"]) == (setup, density)]
            if not runs:
                continue
            needed = [samples_to(r["curve"], base[setup, r["seed"]]) for r in runs]
            least = [min(loss for _, loss in r["curve"]) for r in runs]
            norm = math.fsum(r["grad_norm"] for r in runs) / len(runs)
            found.append({"setup": setup, "density": density, "samples_to": needed, "least": least, "grad_norm": norm})
            shown = " ".join("-" if n is None else f"{n:,.0f}" for n in needed)
            print(
                f"{setup:<14} {density:<17} least {math.fsum(least) / len(least):.4f}  samples {shown}  norm {norm:.2f}"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--densities", nargs="+", choices=DENSITIES, default=list(DENSITIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10_240)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient, 0 for none")
    parser.add_argument("--every", type=int, default=1280, help="samples between two validations")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "adaptive.json")
    parser.add_argument("--moments", action="store_true", help="second moments of the loss by density, nothing else")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.moments:
        found = {setup: second_moments(setup, args) for setup in args.setups}
        report = {"commit": commit(), "samples": args.samples, "hardware": hardware(), "second_moments": found}
        args.out.with_name("adaptive-moments.json").write_text(json.dumps(report, indent=1) + "\n")
        return
    measured, names = commit(), list(dict.fromkeys(["uniform", *args.densities]))
    rows = [run(s, d, seed, args) for seed in range(args.seeds) for s in args.setups for d in names]
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    report = {"commit": measured, "settings": settings, "hardware": hardware(), "table": table(rows), "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
