"""What the counter-based noise costs of a training step: the demo's U-Net and the networks of tables.

    python benchmarks/noise.py

Each step is one of `sf.train`'s loop (forward, backward, optimiser, average), and what is drawn for it is drawn alone
beside it: noise, noise levels, hidden labels, and its part of the order of an epoch. The median step and the median
draw, in turn, so that both see the same machine. torch.randn of the same shape is what noise costs without exactness.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from record import HERE, commit, hardware
from sfumato import data, nets, noise
from sfumato.data import DataSpec
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training.config import TrainConfig
from sfumato.training.loop import fit

LIMIT = 0.02


def table(columns: int) -> data.Source:
    """A table of numbers: 4,000 rows that depend on each other."""
    x = noise.normal(0, range(4000), (columns,), noise.DATA)
    return data.open(x.cumsum(1))


CASES: dict[str, Callable[[], data.Source]] = {
    "U-Net, Fashion-MNIST (1x28x28)": lambda: data.open("fashion"),
    "MLP, table of 8 columns": lambda: table(8),
    "MLP, table of 64 columns": lambda: table(64),
}


def draws(source: data.Source, batch: int, first: int) -> None:
    """Every random number of one step."""
    index = torch.arange(first, first + batch)
    noise.normal(0, index, source.shape, noise.TRAIN_NOISE)
    noise.spread(0, index, noise.TRAIN_TIME)
    if source.classes:
        noise.uniform(0, index, (), noise.DROP)


def once(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(source: data.Source, batch: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step, of its draws and of torch.randn, and the share of the draws."""
    spec = DataSpec.fit(source)
    torch.manual_seed(0)
    net = nets.build(spec.shape, classes=len(spec.classes), samples=len(source))
    denoiser = Denoiser(net, Gaussian(Flow()), "velocity", 1.0, spec)
    going = fit(denoiser, source.x, TrainConfig(steps=steps + 3, batch=batch), source.labels)
    for _ in range(3):
        next(going)
    step, drawn, plain = [], [], []
    for i in range(steps):
        step.append(once(lambda: next(going)))
        drawn.append(once(lambda i=i: draws(source, batch, i * batch)))
        plain.append(once(lambda: torch.randn(batch, *source.shape)))
    order = median([once(lambda i=i: noise.permutation(0, i, len(source))) for i in range(5)])
    own = median(drawn) + order * batch / len(source)
    return {
        "parameters": sum(p.numel() for p in net.parameters()), "batch": batch, "step_ms": 1e3 * median(step),
        "draws_ms": 1e3 * own, "randn_ms": 1e3 * median(plain), "share": own / median(step),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "noise.json")
    options = parser.parse_args()
    rows = []
    for name, opened in CASES.items():
        source = opened()
        for batch in (64, 128):
            row = {"network": name, **measure(source, batch, options.steps)}
            rows.append(row)
            print(
                f"{name:32} batch {batch:3}  step {row['step_ms']:8.2f} ms  draws {row['draws_ms']:6.3f} ms "
                f"({row['share']:5.2%})  torch.randn {row['randn_ms']:.3f} ms",
                flush=True,
            )
    worst = max(float(row["share"]) for row in rows)
    print(f"at most {worst:.2%} of a step; {'within' if worst <= LIMIT else 'OVER'} the limit of {LIMIT:.0%}")
    options.out.write_text(
        json.dumps({**hardware(), "commit": commit(), "limit": LIMIT, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
