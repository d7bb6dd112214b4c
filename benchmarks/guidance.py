"""What guidance samples of a mixture whose tilted laws are known: sliced W2 of each way, and a picture.

python benchmarks/guidance.py --out docs/guidance.png          (two minutes)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import matplotlib
import torch
from torch import Tensor

import sfumato as sf
from sfumato.guidance import APG, CFGZero, Rescaled
from sfumato.metrics.transport import SlicedWasserstein

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

N, SCALES = 2000, (2.0, 4.0)
MEANS = [[-1.2, 0.0], [0.0, 1.2], [1.2, 0.0], [0.0, -1.2]]
TRUTH = sf.exact.GaussianMixture([0.25] * 4, MEANS, 0.15, labels=[0, 0, 1, 1])
MODEL: Any = TRUTH.denoiser(sf.Gaussian(sf.schedules.Cosine()))


def tilted(scale: float, seed: int) -> Tensor:
    """N points of p(x | 1)^g p(x)^(1 - g), from its values on a grid."""
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log = scale * TRUTH.log_prob(points, label=1) + (1 - scale) * TRUTH.log_prob(points)
    draw = torch.Generator().manual_seed(seed)
    rows = points[torch.multinomial(log.softmax(0), N, True, generator=draw)]
    return rows + (torch.rand(N, 2, generator=draw, dtype=torch.float64) - 0.5) * float(axis[1] - axis[0])


def sampled(model: Any, steps: int = 100, solver: str | None = None) -> Tensor:
    x: Tensor = sf.sample(model, N, steps, solver, label=1, batch=N)
    return x


WAYS: dict[str, Callable[[float], Tensor]] = {
    "guide, ODE": lambda g: sampled(sf.guide(MODEL, g)),
    "guide, DDPM": lambda g: sampled(sf.guide(MODEL, g), 200, "ddpm"),
    "guide in an interval": lambda g: sampled(sf.guide(MODEL, g, (-2.0, 2.0))),
    "Rescaled": lambda g: sampled(Rescaled(MODEL, g)),
    "CFGZero": lambda g: sampled(CFGZero(MODEL, g)),
    "APG": lambda g: sampled(APG(MODEL, g)),
    "tilt": lambda g: sf.tilt([(MODEL, {"label": 1}, g), (MODEL, {}, 1 - g)]).sample(N, particles=4096).x,
}
DRAWN = ("guide, ODE", "guide, DDPM", "tilt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="guidance.png")
    out = parser.parse_args().out
    distance = SlicedWasserstein()
    figure, axes = pyplot.subplots(2, 4, figsize=(10, 5.4), sharex=True, sharey=True, layout="constrained")
    print(f"{'sliced W2 to the tilted law':<30}" + "".join(f"{f'scale {g:g}':>10}" for g in SCALES))
    real = {g: tilted(g, 0) for g in SCALES}
    floors = [sum(distance(tilted(g, seed), real[g]).value for seed in range(1, 7)) / 6 for g in SCALES]
    print(f"{'floor (other exact samples)':<30}" + "".join(f"{floor:>10.3f}" for floor in floors))
    for name, draw in WAYS.items():
        found = {g: draw(g) for g in SCALES}
        print(f"{name:<30}" + "".join(f"{distance(found[g], real[g]).value:>10.3f}" for g in SCALES), flush=True)
        for row, g in zip(axes, SCALES, strict=True):
            if name in DRAWN:
                panel(row[1 + DRAWN.index(name)], found[g], name if g == SCALES[0] else "")
    for row, g in zip(axes, SCALES, strict=True):
        panel(row[0], real[g], "tilted law" if g == SCALES[0] else "")
        row[0].set_ylabel(f"scale {g:g}")
    figure.savefig(out, dpi=110)


def panel(axis: Any, x: Tensor, title: str) -> None:
    axis.scatter(*x.T.numpy(), s=2, alpha=0.4, linewidths=0, color="tab:blue")
    axis.scatter(*torch.tensor(MEANS).T.numpy(), marker="+", s=40, color="black", linewidths=0.8)
    axis.set(title=title, xlim=(-2.2, 3.0), ylim=(-3.0, 2.2), aspect="equal")


if __name__ == "__main__":
    main()
