"""What guidance samples of a mixture whose tilted laws are known: sliced W2 of each way, and a picture.

python benchmarks/guidance.py --out docs/guidance.png          (three minutes; results/guidance.json)

Each way is measured beside the tilted law p(x | 1)^g p(x)^(1 - g); autoguidance beside p(x | 1)^g p_w(x | 1)^(1 - g),
where the modes of the weak model w have one and a half times the variance. CFG++ has the strength whose scales have the
mean g; zigzag has the scale (g + 1) / 2, and 1 on the way back, which in the limit are guidance by g.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from typing import Any

import matplotlib
import torch
from torch import Tensor

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.guidance import APG, Autoguided, CFGPlusPlus, CFGZero, FrequencyDecoupled, Rescaled, Zigzag
from sfumato.metrics.transport import SlicedWasserstein

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

N, SCALES = 2000, (2.0, 4.0)
MEANS = [[-1.2, 0.0], [0.0, 1.2], [1.2, 0.0], [0.0, -1.2]]
TRUTH, BLURRED = (sf.exact.GaussianMixture([0.25] * 4, MEANS, v, labels=[0, 0, 1, 1]) for v in (0.15, 0.225))
MODEL, WEAK = (law.denoiser(sf.Gaussian(sf.schedules.Cosine())) for law in (TRUTH, BLURRED))
PLAN = sf.solvers.DDIM().plan(MODEL.process, 100)


AXIS = torch.linspace(-4, 4, 801, dtype=torch.float64)


@functools.cache
def on_grid(weak: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(points, log p(x | 1), log p(x) or log p_w(x | 1))."""
    points = torch.stack(torch.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)
    base = BLURRED.log_prob(points, label=1) if weak else TRUTH.log_prob(points)
    return points, TRUTH.log_prob(points, label=1), base


def tilted(scale: float, seed: int, weak: bool = False) -> Tensor:
    """N points of p(x | 1)^g p(x)^(1 - g), or of p(x | 1)^g p_w(x | 1)^(1 - g), from its values on a grid."""
    points, conditional, base = on_grid(weak)
    log = scale * conditional + (1 - scale) * base
    draw = torch.Generator().manual_seed(seed)
    rows = points[torch.multinomial(log.softmax(0), N, True, generator=draw)]
    return rows + (torch.rand(N, 2, generator=draw, dtype=torch.float64) - 0.5) * float(AXIS[1] - AXIS[0])


def sampled(model: Any, steps: int | None = 100, solver: Any = None) -> Tensor:
    x: Tensor = sf.sample(model, N, steps, solver, label=1, batch=N)
    return x


AUTO = "Autoguided"


def plus(g: float) -> Tensor:
    alpha, sigma = torch.tensor(PLAN.path, dtype=torch.float64).T
    per_strength = 1 / (1 - alpha[:-1] * sigma[1:] / (sigma[:-1] * alpha[1:]))
    return sampled(CFGPlusPlus(MODEL, g / float(per_strength.mean()), PLAN), None, PLAN)


WAYS: dict[str, Callable[[float], Tensor]] = {
    "guide, ODE": lambda g: sampled(sf.guide(MODEL, g)),
    "guide, DDPM": lambda g: sampled(sf.guide(MODEL, g), 200, "ddpm"),
    "guide in an interval": lambda g: sampled(sf.guide(MODEL, g, (-2.0, 2.0))),
    "Rescaled": lambda g: sampled(Rescaled(MODEL, g)),
    "CFGZero": lambda g: sampled(CFGZero(MODEL, g)),
    "CFGZero, zeroed 0.04": lambda g: sampled(CFGZero(MODEL, g, zeroed=0.04)),
    "APG": lambda g: sampled(APG(MODEL, g)),
    "APG, momentum -0.5": lambda g: sampled(APG(MODEL, g, momentum=-0.5)),
    "FrequencyDecoupled": lambda g: sampled(FrequencyDecoupled(MODEL, g)),
    "CFGPlusPlus": plus,
    "Zigzag": lambda g: sampled(sf.guide(MODEL, (g + 1) / 2), 100, Zigzag(low=1.0)),
    AUTO: lambda g: sampled(Autoguided(MODEL, WEAK, g)),
    "tilt": lambda g: sf.tilt([(MODEL, {"label": 1}, g), (MODEL, {}, 1 - g)]).sample(N, particles=4096).x,
}
DRAWN = ("guide, ODE", "guide, DDPM", "tilt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="guidance.png")
    parser.add_argument("--rows", nargs="*", help="measure only these ways, and leave the picture as it is")
    options = parser.parse_args()
    distance = SlicedWasserstein()
    figure, axes = pyplot.subplots(2, 4, figsize=(10, 5.4), sharex=True, sharey=True, layout="constrained")
    print(f"{'sliced W2 to the tilted law':<30}" + "".join(f"{f'scale {g:g}':>10}" for g in SCALES))
    real = {(g, weak): tilted(g, 0, weak) for g in SCALES for weak in (False, True)}
    rows = {}
    if options.rows is None:
        floors = [sum(distance(tilted(g, seed), real[g, False]).value for seed in range(1, 7)) / 6 for g in SCALES]
        rows["floor (other exact samples)"] = floors
    for name, draw in WAYS.items():
        if options.rows is not None and name not in options.rows:
            continue
        found = {g: draw(g) for g in SCALES}
        rows[name] = [distance(found[g], real[g, name == AUTO]).value for g in SCALES]
        for row, g in zip(axes, SCALES, strict=True):
            if name in DRAWN:
                panel(row[1 + DRAWN.index(name)], found[g], name if g == SCALES[0] else "")
    for name, values in rows.items():
        print(f"{name:<30}" + "".join(f"{value:>10.3f}" for value in values), flush=True)
    record = HERE / "results/guidance.json"
    before = json.loads(record.read_text("utf-8"))["sliced W2"] if options.rows and record.exists() else {}
    facts = {"commit": commit(), "hardware": hardware(), "scales": SCALES, "sliced W2": before | rows}
    record.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if options.rows is not None:
        return
    for row, g in zip(axes, SCALES, strict=True):
        panel(row[0], real[g, False], "tilted law" if g == SCALES[0] else "")
        row[0].set_ylabel(f"scale {g:g}")
    figure.savefig(options.out, dpi=110)


def panel(axis: Any, x: Tensor, title: str) -> None:
    axis.scatter(*x.T.numpy(), s=2, alpha=0.4, linewidths=0, color="tab:blue")
    axis.scatter(*torch.tensor(MEANS).T.numpy(), marker="+", s=40, color="black", linewidths=0.8)
    axis.set(title=title, xlim=(-2.2, 3.0), ylim=(-3.0, 2.2), aspect="equal")


if __name__ == "__main__":
    main()
