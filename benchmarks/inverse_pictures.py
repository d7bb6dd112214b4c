"""Inpainting, enlarging and deblurring of held-out pictures, and how often the truth is in the error bars.

    sfumato demo --minutes 9 -o runs/demo
    python benchmarks/inverse_pictures.py runs/demo --pictures 24
    sfumato train emoji --minutes 10 --batch 64 -o runs/emoji \
        --net "UNet(channels=(48, 64, 64), blocks=1, attention=(1, 2), patch=2, middle=0, embed_dim=128)"
    python benchmarks/inverse_pictures.py runs/emoji --data emoji --pictures 8

Of each held-out picture 19 samples. The interval from the second to the second last of 20 places has 18 of 20 chances
to hold the truth: the share of pixels for which it does is the coverage of the 90 % interval. Pixels of one picture
depend on each other, so that the error of the coverage is that of its mean over the pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from record import HERE, commit, hardware
from sfumato import pictures
from sfumato.inverse import operators

DRAWS, NOISE, SHOWN = 19, 2.55, 4
WHITE = 80  # the deviation that is drawn white


def cases(side: int) -> dict[str, tuple[operators.Operator, Tensor]]:
    """Name -> (operator, the pixels (side, side) of which the coverage is measured)."""
    hole = side // 4 + 1
    known = torch.ones(side, side, dtype=torch.bool)
    known[hole:-hole, hole:-hole] = False
    every = torch.ones(side, side, dtype=torch.bool)
    return {
        "inpaint": (operators.Mask(known), ~known),
        "upscale": (operators.Pool(4), every),
        "deblur": (operators.Blur(2.0), every),
    }


def shown(operator: operators.Operator, x: Tensor, y: Tensor) -> Tensor:
    """The measurement as a picture; what is unknown is grey."""
    if isinstance(operator, operators.Mask):
        return torch.where(operator.known, x, 160.0)
    if isinstance(operator, operators.Pool):
        return operator.adjoint(y[None], x[None])[0] * operator.size**2
    return y


def one(
    model: Any, operator: operators.Operator, x: Tensor, seed: int, method: str, label: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """(truth, measurement, four samples, mean and deviation as pictures; whether each number lies in its interval)."""
    draw = torch.Generator().manual_seed(seed)
    y = operator(x[None])[0]
    y = y + NOISE * torch.randn(y.shape, generator=draw, dtype=torch.float64)
    found = sf.posterior(model, y, operator, NOISE, method, DRAWS, seed=seed, **label)
    samples = found.samples.double()
    # whole numbers are ties: their places are drawn
    spread = samples + torch.rand(samples.shape, generator=draw, dtype=torch.float64) - 0.5
    truth = x + torch.rand(x.shape, generator=draw, dtype=torch.float64) - 0.5
    place = (spread < truth).sum(0)
    rows = [x, shown(operator, x, y), *samples[:SHOWN], found.mean, found.std * 255 / WHITE]
    return torch.stack(rows).clamp(0, 255), (place >= 1) & (place <= DRAWS - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="fashion", choices=("fashion", "emoji"))
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--tasks", nargs="*", default=("inpaint", "upscale", "deblur"))
    parser.add_argument("--method", default="auto")
    parser.add_argument("--labelled", action="store_true", help="tell the model the class of each picture")
    parser.add_argument("--shown", type=int, nargs="*", default=(0, 1), help="pictures to draw, by number")
    parser.add_argument("--out", help="the picture; docs/inverse.png of fashion, docs/inverse-emoji.png of emoji")
    parser.add_argument("--record", help="results/inverse_pictures-DATA.json by default")
    options = parser.parse_args()
    model, source = sf.load(options.model), sf.data.open(options.data)
    held_out, draw = source.split()[1], torch.Generator().manual_seed(0)
    rows = held_out[torch.randperm(len(held_out), generator=draw)[: options.pictures]]
    x, told = torch.as_tensor(source.x[rows]).double(), source.conditions["label"]
    grid, names, tasks = [], [], {}
    for name in options.tasks:
        operator, where = cases(x.shape[-1])[name]
        inside, started = [], time.process_time()
        for i, each in enumerate(x):
            label = {"label": told.names[int(told.values[rows[i]])]} if options.labelled else {}
            drawn, held = one(model, operator, each, i, options.method, label)
            inside.append(float(held[:, where].double().mean()))
            if i in options.shown:
                grid.append(drawn)
                names.append(name)
        share = torch.tensor(inside, dtype=torch.float64)
        error = float(share.std()) / math.sqrt(len(x)) if len(x) > 1 else math.nan
        tasks[name] = {"coverage": float(share.mean()), "error": error, "least": float(share.min()), "pictures": inside}
        seconds = time.process_time() - started
        print(f"{name}: {float(share.mean()):.1%} +- {error:.1%} of the pixels, {seconds:.0f} s", flush=True)
    out = options.out or HERE.parent / ("docs/inverse.png" if options.data == "fashion" else "docs/inverse-emoji.png")
    pictures.save_png(pictures.grid(torch.cat(grid).round().to(torch.uint8).numpy(), SHOWN + 4, names), out)
    facts = {"commit": commit(), "hardware": hardware(), "method": options.method, "labelled": options.labelled}
    record = options.record or HERE / f"results/inverse_pictures-{options.data}.json"
    with open(record, "w", encoding="utf-8") as file:
        json.dump(facts | {"draws": DRAWS, "noise": NOISE, "tasks": tasks}, file, indent=1)


if __name__ == "__main__":
    main()
