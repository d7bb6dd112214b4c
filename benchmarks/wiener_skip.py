"""A skip that knows the spectrum, on the demo's clothes: is it to be the default?

    velocity      the default: a Gaussian process, target velocity
    F             the same with the target of the skip, F, of which 0 is the denoiser of white data of variance 1
    F, spectrum   coloured(exponent=0): 0 is the denoiser of the Gaussian field with the data's spectrum

Each is trained for the same numbers of steps as `sfumato demo` trains, and judged by the bound of held-out pictures
with uniform dequantisation, in nats a number, less being better; the differences to the default are of the same
pictures and draws. `python benchmarks/wiener_skip.py`, or in parts: ``--budgets 300 --rows velocity F``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from record import HERE, kept
from sfumato.conditions import of_data

ROWS: dict[str, dict[str, Any]] = {
    "velocity": {},
    "F, spectrum": {"process": "coloured(exponent=0)"},
    "F": {"target": "F"},
}
PICTURES, LEVELS, PROBES = 128, 32, 2


def trained(row: str, steps: int, seed: int) -> tuple[Any, float]:
    """(the model, processor seconds of its training)."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train("fashion", Path(folder) / "run", steps=steps, seed=seed, sample_every=0, **ROWS[row])
        return run.denoiser, time.process_time() - began


def bound(model: Any) -> torch.Tensor:
    """-log p of held-out pictures, at most, in nats a number, (PICTURES,)."""
    source = sf.data.open("fashion")
    held = source.split(model.provenance["holdout"])[1][:PICTURES]
    cond = of_data(model, source, held)
    found = sf.log_prob(model, source.x[held], "elbo", LEVELS, probes=PROBES, dequantisation="uniform", cond=cond)
    return -found.value / source.x[0].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "wiener_skip.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for steps in options.budgets:
        base = None
        for row in options.rows:
            model, seconds = trained(row, steps, options.seed)
            nats = bound(model)
            found = {"row": row, "steps": steps, "seed": options.seed, "seconds": round(seconds, 1)}
            found |= {"nats": round(float(nats.mean()), 4), "error": round(float(nats.std() / PICTURES**0.5), 4)}
            base = nats if row == "velocity" else base
            if base is not None and row != "velocity":
                change = nats - base
                found |= {"change": round(float(change.mean()), 4)}
                found |= {"change_error": round(float(change.std() / PICTURES**0.5), 4)}
            print(json.dumps(found), flush=True)
            kept(options.out, found, ("row", "steps", "seed"))


if __name__ == "__main__":
    main()
