"""The demo aligned to a reward that a person sees: reward, KL, diversity, and the same seeds before and after.

    sfumato demo --minutes 2 -o runs/demo
    python benchmarks/fashion_classifier.py --out build/fashion_classifier.safetensors
    python benchmarks/align.py runs/demo --judge build/fashion_classifier.safetensors

Two rewards: the mean grey value of the left half, in units of 16, and the log-probability that the judge, which has
never seen what the model was trained on, gives to the class that was asked. Of the first the second is the held-out
metric, and the other way round; without --judge there is the first alone. Figures are of 1,000 samples, 100 of each
class, from the same noise before and after, without guidance: that is the law which is aligned. The picture is of the
method with the largest gain in reward less beta KL, which is what all of them maximise.
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

import fashion_classifier
import sfumato as sf
from record import HERE, commit, hardware
from sfumato import pictures
from sfumato.training.precision import compute_dtype

COUNT, SHOWN, CLASSES = 1000, 6, 10
METHODS = ("reward-weighted", "adjoint-matching(samples=256, every=40)")


def left(x: Tensor) -> Tensor:
    """The mean grey value of the left half of pictures (B, 1, 28, 28), in units of 16."""
    return x.double()[..., : x.shape[-1] // 2].mean((1, 2, 3)) / 16


def judged(path: Path) -> Callable[[Tensor], Tensor]:
    """log p(class | x) by the judge; x are samples of all classes in turn, as a model of classes draws them."""
    net = fashion_classifier.load(path).requires_grad_(False)

    def agreement(x: Tensor) -> Tensor:
        asked = torch.arange(len(x)) % CLASSES
        parts = [net(part) for part in x.reshape(-1, 1, 28, 28).split(500)]
        return torch.cat(parts).log_softmax(1).gather(1, asked[:, None])[:, 0].double()

    return agreement


def figures(x: Tensor, rewards: dict[str, Callable[[Tensor], Tensor]]) -> dict[str, float]:
    """Mean rewards, the share to whose class the judge gives more than half, and the spread within classes."""
    found = {name: float(reward(x).mean()) for name, reward in rewards.items()}
    if "agreement" in rewards:
        found["share that agrees"] = float((rewards["agreement"](x) > math.log(0.5)).double().mean())
    by_class = x.double().reshape(-1, CLASSES, 28 * 28)
    return found | {"spread": float(by_class.var(0).sum(1).mean().sqrt())}


def drawn(model: Any, guidance: float = 1.0, count: int = COUNT) -> Tensor:
    """Samples of all classes in turn, always from the same noise."""
    names = list(model.spec.conditions["label"].classes)
    model.compute_dtype = compute_dtype("auto", torch.device("cpu"))
    label = [names[i % CLASSES] for i in range(count)]
    guided = model if guidance == 1 else sf.guide(model, guidance)
    found: Tensor = sf.sample(guided, count, label=label, seed=5)
    return found


def grid(x: Tensor) -> Any:
    """The first SHOWN samples of each class, a class a row."""
    rows = x[: SHOWN * CLASSES].reshape(SHOWN, CLASSES, 1, 28, 28).transpose(0, 1).flatten(0, 1)
    return pictures.grid(rows.numpy(), SHOWN)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run of `sfumato demo`")
    parser.add_argument("--judge", type=Path, help="weights of fashion_classifier.py")
    parser.add_argument("--rewards", nargs="*", help="left, agreement; by default all that there are")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the training")
    parser.add_argument("--runs", type=Path, default=Path("build/runs"))
    parser.add_argument("--out", type=Path, default=HERE / "results/align.json")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs", help="folder of aligned-NAME.png")
    return parser.parse_args()


def main() -> None:
    args = options()
    rewards = {"left": left} | ({} if args.judge is None else {"agreement": judged(args.judge)})
    more = {name: json.loads(value) for name, value in (item.split("=", 1) for item in args.set)}
    start, rows = drawn(sf.load(args.model)), list[dict[str, Any]]()
    for name in args.rewards or rewards:
        best = -math.inf
        for method in args.methods:
            row, after = aligned(args, name, method, rewards, more)
            row["before"], row["after"] = figures(start, rewards), figures(after, rewards)
            row["objective"] = row["after"][name] - row["before"][name] - args.beta * row["report"]["kl"]["value"]
            rows.append(row)
            print(json.dumps(row, indent=1), flush=True)
            if row["objective"] > best:
                best, both = row["objective"], pictures.beside([grid(start), grid(after)], ["before", "after"])
                pictures.save_png(both, args.pictures / f"aligned-{name}.png", {"reward": name, "method": method})
            settings = {key: getattr(args, key) for key in ("beta", "minutes", "seed")} | more
            facts = {"hardware": hardware(), "commit": commit(), "settings": settings, "rows": rows}
            args.out.write_text(json.dumps(facts, indent=1) + "\n")


def aligned(
    args: argparse.Namespace, name: str, method: str, rewards: dict[str, Any], more: dict[str, Any]
) -> tuple[dict[str, Any], Tensor]:
    """(the facts of one run, samples of its model)."""
    judge = next((each for other, each in rewards.items() if other != name), None)
    began, out = time.perf_counter(), args.runs / f"aligned-{name}-{method.partition('(')[0]}"
    found = sf.align(
        args.model, rewards[name], method=method, out=out, beta=args.beta, judge=judge, minutes=args.minutes,
        seed=args.seed, **more,
    )  # fmt: skip
    print(found.report, flush=True)
    steps = max(line.get("step", 0) for line in found.run.metrics)
    facts = {"reward": name, "method": method, "steps": steps, "seconds": time.perf_counter() - began}
    return facts | {"report": found.report.to_dict()}, drawn(sf.load(found.run.path))


if __name__ == "__main__":
    main()
