"""What many of something costs: threads that sample one model, resumes of one run, tiny files, classes.

    python benchmarks/load.py [SECTION ...]

Each section has a process of its own, and says whether what it made is right: threads draw what one after another
draws, a thousand resumes leave neither files open nor threads, a class of a hundred thousand is sampled by name.
Memory is the resident set, in MiB; `peak` is the largest.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.data import DataSpec
from sfumato.diagnostics import board_page, report
from sfumato.machine import peak_memory
from sfumato.training.batches import Batches
from sfumato.training.console import Silent

QUICK: dict[str, Any] = {"batch": 16, "precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent()}
THREADS, RESUMES, FILES, CLASSES = 64, 1000, 100_000, 100_000


def used() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    own = psutil.Process()
    return {"mib": own.memory_info().rss >> 20, "handles": own.num_fds(), "threads": own.num_threads()}


def threads(place: Path) -> dict[str, Any]:
    """64 threads sample one model at once, each with a seed of its own, and then one after another."""
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    model = sf.train(x, place / "run", steps=20, net="tiny", **QUICK).denoiser
    own = torch.get_num_threads()
    torch.set_num_threads(1)  # of each of the threads

    def drawn(seed: int) -> torch.Tensor:
        return sf.sample(model, 64, 10, seed=seed)

    begun = time.perf_counter()
    alone = [drawn(seed) for seed in range(THREADS)]
    middle = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(drawn, range(THREADS)))
    ended = time.perf_counter()
    torch.set_num_threads(own)
    same = all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    return {"same": same, "alone_s": middle - begun, "together_s": ended - middle, **used()}


def resumes(place: Path) -> dict[str, Any]:
    """A run that is resumed for one more step, a thousand times in one process, without charts and validation.

    Charts take nine tenths of the time, and a report reads every validation of a log, of which a real run has dozens.
    """
    board_page.chart = report.chart = lambda *_, **__: None
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    sf.train(x, place / "run", steps=1, net="MLP(width=16, depth=1)", holdout=0, **QUICK)
    found, begun = {}, time.perf_counter()
    for count in range(1, RESUMES + 1):
        sf.resume(place / "run", x, console=QUICK["console"], steps=count + 1)
        if count in (RESUMES // 10, RESUMES // 2, RESUMES):
            found[str(count)] = {**used(), "seconds": time.perf_counter() - begun}
    lines = len((place / "run/metrics.jsonl").read_text().splitlines())
    first, last = found[str(RESUMES // 10)], found[str(RESUMES)]
    kept = last["handles"] <= first["handles"] and last["threads"] <= first["threads"]
    return {"right": kept and lines == RESUMES + 1, "growth_mib": last["mib"] - first["mib"], "after": found}


def tiny_files(place: Path) -> dict[str, Any]:
    """Pictures of 8 x 8 in ten class folders: inspected, and opened up to the first batch."""
    draw = np.random.default_rng(0)
    for label in range(10):
        (place / f"set/{label}").mkdir(parents=True)
    pixels = draw.integers(0, 256, (FILES, 8, 8), dtype=np.uint8)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(place / f"set/{i % 10}/{i:06d}.png")
    before, begun = used(), time.perf_counter()
    source = sf.data.open(place / "set")
    opened = time.perf_counter()
    spec = DataSpec.fit(source)
    batches = Batches(source.x, source.labels, spec, 0, 0.1, torch.device("cpu"))
    x, *_ = batches.take(0, 64)
    batches.close()
    first = time.perf_counter()
    opening = {"open_s": opened - begun, "first_batch_s": first - opened, "peak_mib": peak_memory() >> 20}
    sf.data.inspect(place / "set")
    inspected = time.perf_counter() - first
    right = len(source) == FILES and len(spec.classes) == 10 and tuple(x.shape) == (64, 1, 8, 8)
    inspecting = {"inspect_s": inspected, "inspect_peak_mib": peak_memory() >> 20}
    return {"right": right, "before": before, **opening, **inspecting}


def classes(place: Path) -> dict[str, Any]:
    """Two samples of each of 100,000 classes: five steps, and samples of one of them from the file."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2 * CLASSES, 2)).astype(np.float32)
    labels = np.array([f"class {i:06d}" for i in range(CLASSES)] * 2)
    before, begun = used(), time.perf_counter()
    run = sf.train(x, place / "run", labels=labels, steps=5, net="tiny", **QUICK)
    trained = time.perf_counter()
    model = sf.load(run.path)
    loaded = time.perf_counter()
    drawn = sf.sample(model, 4, 10, label="class 077777")
    sampled = time.perf_counter()
    return {
        "right": tuple(drawn.shape) == (4, 2) and bool(drawn.isfinite().all()) and len(model.spec.classes) == CLASSES,
        "before": before, "train_s": trained - begun, "load_s": loaded - trained, "sample_s": sampled - loaded,
        "report_mib": (run.path / "report.html").stat().st_size / 2**20,
        "model_mib": (run.path / "model.safetensors").stat().st_size / 2**20, "peak_mib": peak_memory() >> 20,
    }  # fmt: skip


SECTIONS = {each.__name__: each for each in (threads, resumes, tiny_files, classes)}


def shown(name: str, facts: dict[str, Any], level: int = 0) -> None:
    print("  " * level + name)
    for key, value in facts.items():
        if isinstance(value, dict):
            shown(key, value, level + 1)
        else:
            print("  " * (level + 1) + f"{key:18} " + (f"{value:.4g}" if isinstance(value, float) else str(value)))


def main(names: list[str]) -> None:
    if names[:1] == ["--alone"]:
        with tempfile.TemporaryDirectory(prefix="sfumato-load-") as place:
            print(json.dumps(SECTIONS[names[1]](Path(place))))
        return
    path = HERE / "results" / "load.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in names or SECTIONS:
        done = subprocess.run(
            [sys.executable, __file__, "--alone", name], stdout=subprocess.PIPE, text=True, check=True
        )
        facts = json.loads(done.stdout.splitlines()[-1])
        shown(f"{name}: {' '.join((SECTIONS[name].__doc__ or '').split())}", facts)
        kept = {**kept, "hardware": hardware(), "commit": commit(), name: facts}
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
