"""H5 on a network: what Consistent Diffusion's and FP-Diffusion's regularisers do to their own audit and to the others.

    python benchmarks/residual_losses.py [--steps 1500] [--shares 0.3 1 3] [--seeds 5]

A small MLP learns a mixture in the plane from 64 points, once by the denoising loss alone and with each regulariser,
from the same weights, points and draws, which are other ones for each seed. Shown are means over logsnr -1 to 3 of both
residuals and of the curl, each over E|x - D|^2 or |J|^2, of the martingale defect, and of the distance to the exact
E[x|z], over the same; with several seeds, their mean, and that of the change against the denoising loss of the same
seed with its standard error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import sfumato as sf
from record import HERE, kept
from sfumato.objectives.loss import Batch
from sfumato.objectives.losses import Denoising
from sfumato.objectives.residuals import ConsistentDiffusion, FPDiffusion
from sfumato.objectives.times import UniformTime

LAW = sf.exact.GaussianMixture([0.3, 0.4, 0.3], [[-1.2, 0.5], [1.0, 0.2], [0.2, -1.1]], [0.12, 0.2, 0.05])
PROCESS = sf.Gaussian(sf.schedules.Cosine())
POINTS, BATCH = 64, 128


def train(loss: Denoising, steps: int, seed: int) -> sf.Denoiser:
    torch.manual_seed(seed)
    model = sf.Denoiser(sf.nets.MLP(2, 64, 2), PROCESS, "v")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    x = LAW.sample(POINTS, seed=7 + seed).float()
    for step in range(steps):
        index = torch.arange(step * BATCH, (step + 1) * BATCH)
        u = sf.Noise(1 + seed, index).uniform(dtype=torch.float64)
        cond = sf.conditions.resolve(model, {}, BATCH)
        value = loss.losses(model, Batch(x[index % POINTS], cond, index, u)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
    return model


def judge(model: sf.Denoiser) -> dict[str, float]:
    """Means over levels, of which those of products are free of bias."""
    found = sf.audit(
        model,
        LAW,
        bins=[-1, 0, 1, 2, 3],
        samples=4096,
        audits=["reverse-martingale", "generator", "curl", "martingale"],
    )
    means = {name: sum(one.value for one in each.value) / len(each.value) for name, each in found.findings.items()}
    means["martingale"] = sum(abs(one.value) for one in found.findings["martingale"].value) / 4
    off = []
    for logsnr in (-0.5, 0.5, 1.5, 2.5):
        t = PROCESS.schedule.time(logsnr)
        z = LAW.sample(4096, seed=3, process=PROCESS, t=t)
        with torch.no_grad():
            error = (model(z.float(), t).x.double() - LAW.moments(z, process=PROCESS, t=t).x).square().sum(1).mean()
        off.append(float(error / LAW.total_variance(z, process=PROCESS, t=t).mean()))
    return means | {"off": sum(off) / len(off)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "residual_losses.json")
    options = parser.parse_args()
    found: dict[str, list[Tensor]] = {}
    for seed in range(options.seeds):
        losses: dict[str, Denoising] = {"denoising": Denoising(UniformTime(), None, 1 + seed)}
        for share in options.shares:
            losses[f"consistent {share:g}"] = ConsistentDiffusion(UniformTime(), None, 1 + seed, share)
            losses[f"fp {share:g}"] = FPDiffusion(UniformTime(), None, 1 + seed, share)
        for name, loss in losses.items():
            judged = judge(train(loss, options.steps, seed))
            found.setdefault(name, []).append(torch.tensor(list(judged.values())))
            print(f"{seed} {name:<16}", "  ".join(f"{key} {value:.4f}" for key, value in judged.items()), flush=True)
            kept(options.out, {"loss": name, "seed": seed, "steps": options.steps, **judged}, ("loss", "seed", "steps"))
    if options.seeds > 1:
        compared(found, list(judged))


def compared(found: dict[str, list[Tensor]], keys: list[str]) -> None:
    """Print the mean over seeds, and that of the paired change against the denoising loss with its standard error."""
    rows = {name: torch.stack(each) for name, each in found.items()}
    for name, row in rows.items():
        change = row - rows["denoising"]
        parts = zip(keys, row.mean(0), change.mean(0), change.std(0) / len(row) ** 0.5, strict=True)
        print(f"{name:<18}", "  ".join(f"{key} {mean:.4f} ({d:+.4f} +- {e:.4f})" for key, mean, d, e in parts))


if __name__ == "__main__":
    main()
