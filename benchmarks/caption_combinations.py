"""Captions that combine what others said, plain and with retrieval: is the combination drawn that training left out?

    python benchmarks/caption_combinations.py [--steps 200] [--out benchmarks/results/caption_combinations.json]

Pictures of 8 x 8 pixels, noise of deviation 12 on a square or a line in one of five colours and four places, captioned
"a red square at the top left". Of the 40 combinations eight are left out of training. A sample is right if the picture
without noise that is nearest to it, of the 40, is that of its caption.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import sfumato as sf
from record import commit, hardware
from sfumato.conditions import retrieved
from sfumato.errors import SfumatoWarning

COLOURS = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "yellow": (255, 220, 0), "white": (255,) * 3}
PLACES = {"top left": (0, 0), "top right": (0, 4), "bottom left": (4, 0), "bottom right": (4, 4)}
HEIGHTS = {"square": 4, "line": 2}
NUMBER, LEFT_OUT, DRAWN, STEPS, GUIDANCE = 1280, 8, 8, 10, 2.0


def picture(colour: str, place: str, shape: str) -> np.ndarray:
    x = np.full((3, 8, 8), 30.0)
    row, column = PLACES[place]
    x[:, row : row + HEIGHTS[shape], column : column + 4] = np.array(COLOURS[colour])[:, None, None]
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of 32 pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/caption_combinations.json")
    options = parser.parse_args()
    kinds, draw = list(itertools.product(COLOURS, PLACES, HEIGHTS)), np.random.default_rng(options.seed)
    clean, said = np.stack([picture(*kind) for kind in kinds]), [f"a {c} {s} at the {p}" for c, p, s in kinds]
    unseen = draw.choice(len(kinds), LEFT_OUT, replace=False).tolist()
    trained = [i for i in range(len(kinds)) if i not in unseen]
    rows = [trained[i % len(trained)] for i in range(NUMBER)]
    x = np.clip(clean[rows] + draw.normal(0, 12, (NUMBER, 3, 8, 8)), 0, 255).astype(np.uint8)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = sf.train(
            {"x": x, "caption": [said[i] for i in rows]}, Path(folder) / "run", steps=options.steps, batch=32,
            net="tiny", holdout=0.0, seed=options.seed, sample_every=0, snapshots=0, threads=1,
        ).denoiser  # fmt: skip
    guided, figures = sf.guide(model, GUIDANCE), {}

    def right(asked: list[int], captions: list[str]) -> float:
        y = torch.as_tensor(sf.sample(guided, len(captions), STEPS, seed=options.seed, caption=captions)).numpy()
        distance = ((y[:, None].astype(float) - clean) ** 2).mean((2, 3, 4))
        return round(float((distance.argmin(1) == np.array(asked)).mean()), 4)

    for side, some in (("trained", trained), ("unseen", unseen)):
        asked = [i for i in some for _ in range(DRAWN)]
        captions = [said[i] for i in asked]
        figures[side] = {"plain": right(asked, captions), "retrieved": right(asked, retrieved(model, captions))}
    found = {
        "right": figures, "steps": options.steps, "seed": options.seed, "guidance": GUIDANCE,
        "combinations": len(kinds), "left_out": LEFT_OUT, "seconds": round(time.process_time() - started, 1),
        "commit": commit(), "hardware": hardware(),
    }  # fmt: skip
    Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)
        main()
