"""What reading data costs: the start of a run with and without the cache, and how long steps wait for their batches.

    python benchmarks/data.py

A folder of JPEG files is made for the purpose. The start is `data.open` and `DataSpec.fit`, as a run begins; each is
timed in a process of its own with the same pages in memory. Then one training step after another from pictures in
memory, from the mapped cache and from the files themselves, fetched by no thread and by several: data-wait is the share
of the time that the log of a run would tell.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from record import HERE, commit, hardware
from sfumato import cache, data, machine, nets
from sfumato.data import DataSpec
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training.config import TrainConfig
from sfumato.training.loop import fit

START = """
import json, sys, time
from sfumato import data
from sfumato.data import DataSpec
begun = time.perf_counter()
source = data.open(sys.argv[1], size=int(sys.argv[2]))
opened = time.perf_counter()
DataSpec.fit(source)
print(json.dumps({"open_s": opened - begun, "fit_s": time.perf_counter() - opened}))
"""
# (whether memory may hold the pictures, where decoded ones are kept, threads)
WAYS = (
    (True, "cache", 0), (False, "cache", 0), (False, "cache", 1),
    (False, "off", 0), (False, "off", 1), (False, "off", 2),
)  # fmt: skip
SHOWN = "{from:10} {workers} workers  {samples_a_second:7.1f} samples/s  data-wait {data_wait:6.1%}"


def photos(folder: Path, count: int) -> Path:
    """Smooth pictures of 400 x 300 with some noise, which a JPEG of quality 85 makes 20 to 40 kB of."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((400, 300), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:05d}.jpg", quality=85)
    return folder


def start(folder: Path, size: int, place: str) -> dict[str, float]:
    env = {**os.environ, cache.PLACE: place}
    words = [sys.executable, "-c", START, str(folder), str(size)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def steps(folder: Path, size: int, workers: int, count: int) -> dict[str, Any]:
    """Samples a second and the share of waiting, of the settings that the environment has at this moment."""
    source = data.open(folder, size=size)
    spec = DataSpec.fit(source)
    torch.manual_seed(0)
    denoiser = Denoiser(nets.build(spec.shape, samples=len(source)), Gaussian(Flow()), "velocity", 1.0, spec)
    lines = list(fit(denoiser, source.x, TrainConfig(steps=count, batch=64, workers=workers)))
    waits = [line.data_wait for line in lines[1:] if line.data_wait is not None]
    return {
        "from": type(source.x).__name__, "workers": workers, "samples_a_second": lines[-1].rate,
        "data_wait": sum(waits) / len(waits),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "data.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, kept = photos(Path(place) / "photos", options.count), str(Path(place) / "cache")
        starts = {}
        for name, where in {"no cache": "off", "first, into the cache": kept, "second, from the cache": kept}.items():
            starts[name] = start(folder, options.size, where)
            print(f"{name:24} open {starts[name]['open_s']:7.2f} s  fit {starts[name]['fit_s']:6.2f} s", flush=True)
        rows = []
        room = machine.available
        for held, where, workers in WAYS:
            where = kept if where == "cache" else where
            os.environ[cache.PLACE] = where
            machine.available = room if held else lambda: 1e4
            rows.append(steps(folder, options.size, workers, options.steps))
            print(SHOWN.format(**rows[-1]), flush=True)
    about = {"count": options.count, "size": options.size, "steps": options.steps}
    found = {**hardware(), "commit": commit(), **about, "start": starts, "rows": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
