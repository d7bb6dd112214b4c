"""Noto emoji become Fluent ones: pairs of one name, 160 names held out, beside copying and regression.

    RMSE     of the held-out pictures, in units of the white of a screen: least for the mean E[x | x'], which is blurred
    edges    the root mean square of differences of neighbours, over that of the true pictures: less than 1 is blurred
    found    share of the held-out names whose translation is nearer to its own Fluent picture than to the 159 others

The rows are the source itself, one call of the flow, which is the regression E[x | x'], and several. Get the sources by
``npm pack emoji-datasource-google@16.0.0`` and ``tar xf``; then ``python benchmarks/translate_emoji.py package`` writes
the figures and a picture: source, translation and truth of held-out names.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sfumato as sf
from record import HERE, kept

HELD, SIDE = 160, 32
NET = "UNet(channels=(48,64,96),blocks=1,attention=(2,),head_dim=32,patch=2,middle=1,embed_dim=192)"
SETTINGS = {"process": "rectified-flow", "net": NET, "batch": 16, "sample_every": 0, "snapshots": 0}
CALLS = (1, 4, 16)
COLUMNS = 5


def pairs(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sources, Fluent pictures, which are held out) of the names that both have, uint8 (n, 3, SIDE, SIDE)."""
    images: dict[str, str] = {}
    for entry in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        images.setdefault(entry["name"], entry["image"])
        for tone, varied in entry.get("skin_variations", {}).items():
            images.setdefault(f"{entry['name']} skin {tone}", varied["image"])
    fluent = sf.data.open("emoji")
    names = [name.split(" ", 1)[1] for name in fluent.ids]
    bases = sorted({name.split(" skin ")[0] for name in names})
    order = np.random.default_rng(0).permutation(len(bases))
    held = {bases[k] for k in order[:HELD]}
    files = folder / "img/google/64"
    chosen = [k for k, name in enumerate(names) if name in images and (files / images[name]).exists()]
    # no tone of the skin of a held-out name is trained with, and one picture of each name is taken
    chosen = [k for k in chosen if " skin " not in names[k] or names[k].split(" skin ")[0] not in held]
    chosen = list({names[k]: k for k in reversed(chosen)}.values())[::-1]
    sources = np.stack([drawn(files / images[names[k]]) for k in chosen])
    return sources, fluent.x[chosen].numpy(), np.array([names[k] in held for k in chosen])


def drawn(path: Path) -> np.ndarray:
    """A picture on white, (3, SIDE, SIDE)."""
    with Image.open(path) as image:
        small = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BOX)
    white = Image.new("RGBA", small.size, "white")
    white.alpha_composite(small)
    return np.asarray(white.convert("RGB")).transpose(2, 0, 1)


def judged(x: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The figures of translations x, both uint8 (n, 3, SIDE, SIDE)."""
    a, b = x / 255, truth / 255
    square = ((a[:, None] - b[None]) ** 2).mean((2, 3, 4))

    def edges(y: np.ndarray) -> float:
        return float(((np.diff(y, axis=2) ** 2).mean() + (np.diff(y, axis=3) ** 2).mean()) ** 0.5)

    found = square.argmin(1) == np.arange(len(x))
    figures = {"RMSE": square.diagonal().mean() ** 0.5, "edges": edges(a) / edges(b), "found": found.mean()}
    return {name: round(float(value), 4) for name, value in figures.items()}


def sheet(columns: list[np.ndarray], rows: np.ndarray) -> Image.Image:
    """The columns of some rows side by side, COLUMNS of these in a line, at twice their size."""
    white = 255 * np.ones((len(rows), 3, SIDE, 8), np.uint8)
    tiles = np.concatenate([*(each[rows] for each in columns), white], 3)
    lines = [np.concatenate(list(tiles[k : k + COLUMNS]), 2) for k in range(0, len(rows), COLUMNS)]
    image = Image.fromarray(np.concatenate(lines, 1).transpose(1, 2, 0))
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("noto", type=Path, help="the unpacked folder of emoji-datasource-google")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "translate_emoji.json")
    parser.add_argument("--picture", type=Path, default=Path("translated.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources, fluent, held = pairs(options.noto)
    truth, shown = fluent[held], np.arange(0, held.sum(), held.sum() // (8 * COLUMNS))[: 8 * COLUMNS]

    def record(row: str, x: np.ndarray, **facts: Any) -> None:
        found = {"row": row, "minutes": options.minutes, **facts, **judged(x, truth)}
        print(json.dumps(found), flush=True)
        kept(options.out, found, ("row", "minutes"))

    record("source", sources[held])
    began, data = time.process_time(), {"x": fluent[~held], "input": sources[~held]}
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(data, Path(folder) / "run", minutes=options.minutes, **SETTINGS)
        steps, seconds = run.metrics[-1]["step"], round(time.process_time() - began, 1)
        for calls in CALLS:
            x = np.asarray(sf.sample(run.denoiser, len(truth), calls, input=sources[held]))
            record(f"flow, calls: {calls}", x, steps=steps, seconds=seconds)
    sheet([sources[held], x, truth], shown).save(options.picture)


if __name__ == "__main__":
    main()
