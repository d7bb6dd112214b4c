"""Every setting of the objective that the command line takes: does what it trains sample by default?

    OMP_NUM_THREADS=1 python benchmarks/settings.py [--only TEXT] [--part 0/2] [--again] [--limit N] [--seeds 3]

Data: a mixture of three tilted Gaussians in 2-D, in user units; `sf.train` for 1,200 steps of the default network. For
each setting: refused before training (and what the refusal advises), or the sliced Wasserstein distance of 2,000
samples to the law, in standard deviations of the data, with the default solver (20 calls), DDPM (200 calls) and Heun
(25 steps). Every schedule with every target; every weight with every density of noise levels, under schedules and
targets in turn. Rows go to results/settings.json as they are made; those in it are not made again without --again.
--seeds N trains what lies above 1.5 times the best sampler with further seeds, whose ratios stand beside the first.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.registry import Named, names
from sfumato.training.console import Silent

RESULTS = HERE / "results/settings.json"
STEPS, TRAINED, SAMPLES = 1200, 20_000, 2000
DERIVED = ("shifted", "tabulated", "from-betas", "zero-terminal-snr")  # made of others
SCHEDULES = [name for name in names("schedule") if name not in DERIVED]
SOLVERS: dict[str, dict[str, Any]] = {
    "default": {}, "ddpm": {"solver": "ddpm", "steps": 200}, "heun": {"solver": "heun", "steps": 25},
}  # fmt: skip
MEANS = torch.tensor([[20.0, -5.0], [60.0, 30.0], [35.0, 50.0]])
FACTORS = torch.tensor([[[6.0, 0.0], [4.0, 1.5]], [[3.0, 0.0], [-4.0, 2.0]], [[8.0, 0.0], [2.0, 1.0]]])


def law(count: int, seed: int) -> torch.Tensor:
    """Samples of the mixture, (count, 2)."""
    draw = torch.Generator().manual_seed(seed)
    k = torch.multinomial(torch.tensor([0.3, 0.3, 0.4]), count, True, generator=draw)
    return MEANS[k] + torch.einsum("nij,nj->ni", FACTORS[k], torch.randn(count, 2, generator=draw))


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """The sliced Wasserstein-2 distance over 64 directions, in standard deviations of y."""
    angle = torch.linspace(0, math.pi, 65)[:-1]
    ways = torch.stack((angle.cos(), angle.sin()))
    levels = (torch.arange(1000) + 0.5) / 1000
    a, b = ((each / y.std(0)) @ ways for each in (x, y))
    return float((a.quantile(levels, dim=0) - b.quantile(levels, dim=0)).square().mean().sqrt())


def cases() -> list[dict[str, str]]:
    """Every schedule with every target, then every weight with every density."""
    found = [{"schedule": schedule, "target": target} for schedule, target in product(SCHEDULES, names("target"))]
    moving = {name for name, make in Named("density").items() if make().moves}
    under = cycle([("flow", "velocity"), ("linear", "eps"), ("cosine", "v"), ("edm", "F"), ("ve", "score")])
    weights = sorted(names("weight"), key=lambda name: name == "eye")  # what is newer last, as the pairs go in turn
    for weight, times in product(["plain", *weights], names("density")):
        schedule, target = next(under)
        if weight == "plain" and (times in moving or target == "score"):
            continue
        found.append({"schedule": schedule, "target": target, "weight": weight, "times": times})
    return found


def name_of(settings: dict[str, str]) -> str:
    return " ".join(settings.values())


def judge(settings: dict[str, str], seed: int = 0) -> dict[str, Any]:
    """Train with the settings and measure the samples, or keep the sentence of the refusal."""
    row: dict[str, Any] = {"settings": settings, "commit": commit()}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            sf.train(law(TRAINED, 1).numpy(), run, steps=STEPS, sample_every=0, console=Silent(), seed=seed, **settings)
        except sf.SfumatoError as error:
            return row | {"refused": str(error)}
        model, truth = sf.load(run / "model.safetensors"), law(10 * SAMPLES, 2)
        row["distance"] = {
            name: distance(sf.sample(model, SAMPLES, batch=SAMPLES, **how), truth) for name, how in SOLVERS.items()
        }
    best = max(min(row["distance"].values()), floor())
    return row | {"ratio": row["distance"]["default"] / best, "seconds": round(time.process_time() - started, 1)}


def floor() -> float:
    """The distance of as many samples of the law itself, the median of nine draws."""
    truth = law(10 * SAMPLES, 2)
    return float(torch.tensor([distance(law(SAMPLES, seed), truth) for seed in range(10, 19)]).median())


def shown(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"{name_of(row['settings']):44s} refused: {row['refused'][:90]}"
    figures = "  ".join(f"{value:8.3f}" for value in row["distance"].values())
    return f"{name_of(row['settings']):44s} {figures}  {row['ratio']:6.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th case from the I-th on")
    parser.add_argument("--again", action="store_true", help="make rows again that are in the results")
    parser.add_argument("--limit", type=int, help="at most so many new rows")
    parser.add_argument("--seeds", type=int, default=1, help="of rows above 1.5: as many seeds in all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, parts = map(int, options.part.split("/"))
    print(f"floor {floor():.3f}\n{'settings':44s} {'  '.join(f'{name:>8s}' for name in SOLVERS)}   ratio")
    made = 0
    for settings in [each for each in cases() if options.only in name_of(each)][first::parts]:
        rows = {name_of(row["settings"]): row for row in stored()}
        if name_of(settings) in rows and not options.again:
            continue
        if made == options.limit:
            break
        row = judge(settings)
        print(shown(row), flush=True)
        made += 1
        rows = {name_of(each["settings"]): each for each in stored()} | {name_of(settings): row}
        ordered = [rows[name_of(each)] for each in cases() if name_of(each) in rows]
        write(ordered)
    rows = stored()
    for row in rows:
        if row.get("ratio", 0) > 1.5 and len(row.get("others", [])) + 1 < options.seeds:
            row["others"] = [judge(row["settings"], seed)["ratio"] for seed in range(1, options.seeds)]
            print(f"{name_of(row['settings']):44s} other seeds {row['others']}", flush=True)
            write(rows)
    sampled = [row for row in rows if "ratio" in row]
    print(f"{len(rows)} of {len(cases())} settings: {len(rows) - len(sampled)} refused, {len(sampled)} trained, "
          f"{sum(row['ratio'] > 1.5 for row in sampled)} of them above 1.5 times the best sampler")  # fmt: skip
    return 0


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.write_text(json.dumps({"hardware": hardware(), "floor": floor(), "rows": rows}, indent=1) + "\n")


def stored() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


if __name__ == "__main__":
    sys.exit(main())
