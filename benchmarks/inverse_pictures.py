"""Inpainting, enlarging and deblurring of held-out clothes: a picture, and how often the truth is in the error bars.

    sfumato demo --minutes 6 -o runs/demo
    python benchmarks/inverse_pictures.py runs/demo

Of four held-out pictures 19 samples each. The interval from the second to the second last of 20 places has 18 of 20
chances to hold the truth: the share of pixels for which it does is the coverage of the 90 % interval.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from record import HERE
from sfumato import pictures
from sfumato.inverse import operators

DRAWS, NOISE, SHOWN = 19, 2.55, 4
EVERYWHERE = torch.ones(28, 28, dtype=torch.bool)


def cases() -> dict[str, tuple[operators.Operator, Tensor]]:
    """Name -> (operator, the pixels of which the coverage is measured)."""
    known = EVERYWHERE.clone()
    known[8:22, 8:22] = False
    return {
        "inpaint": (operators.Mask(known), ~known),
        "upscale": (operators.Pool(4), EVERYWHERE),
        "deblur": (operators.Blur(2.0), EVERYWHERE),
    }


def shown(operator: operators.Operator, x: Tensor, y: Tensor) -> Tensor:
    """The measurement as a picture."""
    if isinstance(operator, operators.Mask):
        return torch.where(operator.known, x, 255.0)
    if isinstance(operator, operators.Pool):
        return operator.adjoint(y[None], x[None])[0] * operator.size**2
    return y


def one(model: Any, operator: operators.Operator, x: Tensor, seed: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(truth, measurement, four samples, mean and deviation as pictures; whether each pixel lies in its interval)."""
    y = operator(x[None])[0]
    y = y + NOISE * torch.randn(y.shape, generator=draw, dtype=torch.float64)
    found = sf.posterior(model, y, operator, NOISE, "mmps", DRAWS, seed=seed)
    samples = found.samples.double()
    # whole numbers are ties: their places are drawn
    spread = samples + torch.rand(samples.shape, generator=draw, dtype=torch.float64) - 0.5
    truth = x + torch.rand(x.shape, generator=draw, dtype=torch.float64) - 0.5
    place = (spread < truth).sum(0)[0]
    deviation = found.std * 255 / 80  # white is a deviation of 80
    rows = [x, shown(operator, x, y), *samples[:SHOWN], found.mean, deviation]
    return torch.stack(rows).clamp(0, 255), (place >= 1) & (place <= DRAWS - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--out", default=str(HERE.parent / "docs/inverse.png"))
    options = parser.parse_args()
    model, source = sf.load(options.model), sf.data.open("fashion")
    held_out, draw = source.split()[1], torch.Generator().manual_seed(0)
    x = torch.as_tensor(source.x[held_out[torch.randperm(len(held_out), generator=draw)[:4]]]).double()
    grid = []
    for name, (operator, where) in cases().items():
        found = [one(model, operator, each, i, draw) for i, each in enumerate(x)]
        coverage = torch.stack([inside[where].double().mean() for _, inside in found]).mean()
        print(f"{name}: the 90 % interval holds {float(coverage):.1%} of the pixels", flush=True)
        grid += [rows for rows, _ in found[:2]]
    names = [name for name in cases() for _ in range(2)]
    picture = pictures.grid(torch.cat(grid).round().to(torch.uint8).numpy(), SHOWN + 4, names)
    pictures.save_png(picture, options.out)


if __name__ == "__main__":
    main()
