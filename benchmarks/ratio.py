"""How far the log-ratio by the bounds agrees with the exact one, against the number of draws.

    python benchmarks/ratio.py

Two models of eight Gaussians in the plane are trained for the same number of steps, from two seeds, and a third is the
first aligned to a linear reward. For each pair, over 256 samples: the correlation of `sf.log_ratio` with the difference
of two `sf.log_prob` by the ODE, its standard deviation around it, and the mean difference, which is that of two bounds.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.reinforce import align
from sfumato.training.console import Silent

DRAWS = ((2, 1), (2, 4), (2, 16), (4, 32), (8, 64))  # independent estimates, levels of each
COUNT = 256


def ring(count: int, seed: int) -> torch.Tensor:
    """Eight Gaussians of deviation 0.15 on the unit circle."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    return torch.stack((angle.cos(), angle.sin()), 1) + 0.15 * torch.randn(count, 2, generator=generator)


def models(steps: int, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Pairs of models to compare."""
    how = {"sample_every": 0, "console": Silent()}
    one, two = (
        sf.train(ring(5000, 0), folder / str(seed), net="tiny", steps=steps, seed=seed, **how).denoiser
        for seed in (0, 1)
    )
    moved = align(one, lambda x: x[:, 0], out=folder / "aligned", beta=0.5, samples=2048, steps=steps // 4, **how)
    return {"two seeds": (two, one), "aligned": (moved.run.denoiser, one)}


def figures(
    model: Any, reference: Any, draws: int, levels: int, exact: torch.Tensor, x: torch.Tensor
) -> dict[str, float]:
    found = sf.log_ratio(model, reference, x, draws, levels).value
    gap = found - exact
    together = torch.corrcoef(torch.stack((found, exact)))[0, 1]
    return {
        "calls": 2 * draws * levels, "correlation": float(together), "deviation": float(gap.std()),
        "difference": float(gap.mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default=str(HERE / "results/ratio.json"))
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, reference) in models(options.steps, Path(folder)).items():
            x = sf.sample(reference, COUNT, seed=5)
            exact = sf.log_prob(model, x).value - sf.log_prob(reference, x).value
            rows[name] = [figures(model, reference, *each, exact, x) for each in DRAWS]
            print(f"{name}: exact log ratio {float(exact.mean()):.3f}, deviation {float(exact.std()):.3f} nats")
            for row in rows[name]:
                print(
                    f"  {row['calls']:>5} calls a sample: correlation {row['correlation']:.3f}, off by "
                    f"{row['deviation']:.3f} (mean {row['difference']:.3f}) nats"
                )
    facts = {"hardware": hardware(), "commit": commit(), "steps": options.steps, "samples": COUNT, "rows": rows}
    Path(options.out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
