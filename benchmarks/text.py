"""Losses of text at equal budgets: bits per character of held-out Shakespeare, and the order that the literature has.

    OMP_NUM_THREADS=1 python benchmarks/text.py [--steps 1500] [--seeds 3] [--only TEXT] [--again] [--net N] [--letters]

The same transformer (two blocks of 128 channels, or --net), batches, windows of 128 characters, optimiser and number of
steps for every row; only the process, the loss and what each output hears differ. --letters: of 28 symbols, small
letters, a space for all between them (as text8 has) and the end of a work, instead of 85. Bits are measured on the same
held-out windows: exactly of the autoregressive model, by exact counts of masks or by the path bound of the others. On
text8, of models trained to the end, the literature has AR 1.23 < MD4 1.37 < SEDD 1.39 ~ MDLM 1.40 < ARDM 1.43 < D3PM
(absorbing) 1.45 < D3PM (uniform) 1.61 < multinomial 1.72. Rows go to results/text.json as they are made.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from record import HERE, commit, hardware
from sfumato import noise
from sfumato.autoregressive import Autoregressive
from sfumato.data import Source
from sfumato.data.text import END
from sfumato.training.console import Silent

RESULTS = HERE / "results/text.json"
LENGTH, BATCH, WINDOWS = 128, 8, 256
NET = "Transformer(width=128, depth=2)"
METHODS: dict[str, dict[str, Any]] = {
    "autoregressive": {"loss": "autoregressive"},
    "masked, exact counts (MD4, MDLM, ARDM)": {"loss": "masked"},
    "masked, independent masks": {"process": "masked", "loss": "denoising", "times": "uniform"},
    "score entropy, masked (SEDD)": {
        "process": "masked(row=ratio)", "loss": "score-entropy(normalised=False)", "times": "uniform",
    },
    "masked, 1000 steps (D3PM)": {"process": "masked", "loss": "d3pm(steps=1000)"},
    "uniform, continuous time (UDLM)": {"process": "uniform", "loss": "denoising", "times": "uniform"},
    "uniform, 1000 steps (multinomial)": {"process": "uniform", "loss": "nonequilibrium(steps=1000)"},
    "embedded, learned (CDCD)": {
        "process": "embedded(codebook=learned)", "loss": "cross-entropy", "times": "warped", "net": NET,
    },
}  # fmt: skip


def works(letters: bool) -> Source:
    """Windows of the works of Shakespeare, held out by whole works."""
    source = sf.data.open("shakespeare", length=LENGTH)
    if not letters:
        return source
    texts = source.text.decode(source.x.flatten().tolist()).split(END)
    return sf.data.open([re.sub("[^a-z]+", " ", each.lower()) for each in texts], length=LENGTH)


def judge(settings: dict[str, Any], steps: int, seed: int, net: str, source: Source) -> dict[str, Any]:
    """Train, and measure bits per character of the held-out windows."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(
            source, Path(folder) / "run", steps=steps, batch=BATCH, seed=seed, sample_every=0, console=Silent(),
            **{"net": net, **settings},
        )  # fmt: skip
        spent = time.process_time() - started
        model: Any = sf.load(run.path)
    held = source.split()[1]
    x = source.x[held[noise.permutation(0, 0, len(held))[:WINDOWS]]]
    if isinstance(model, Autoregressive):
        with torch.no_grad():
            nats = -torch.cat([model.log_prob(part).cpu() for part in x.split(32)]).double()
    else:
        nats = -sf.log_prob(model, x, steps=8, probes=2).value
    bits = nats / (math.log(2) * LENGTH)
    return {
        "bits": float(bits.mean()), "stderr": float(bits.std() / math.sqrt(len(bits))), "seed": seed, "steps": steps,
        "net": net, "symbols": source.text.size, "seconds": round(spent, 1),
        "parameters": sum(p.numel() for p in model.net.parameters()), "commit": commit(),
    }  # fmt: skip


def kind_of(row: dict[str, Any]) -> tuple[int, str, int]:
    """What rows must share to stand beside each other."""
    return row["steps"], row.get("net", NET), row.get("symbols", 85)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--net", default=NET, help="of all rows but the embedded one")
    parser.add_argument("--letters", action="store_true", help="of 28 symbols instead of 85")
    parser.add_argument("--again", action="store_true", help="make rows again that are in the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = works(options.letters)
    kind = (options.steps, options.net, source.text.size)
    rows: dict[str, list[dict[str, Any]]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for seed in range(options.seeds):
        for name, settings in METHODS.items():
            done = [row for row in rows.get(name, []) if row["seed"] == seed and kind_of(row) == kind]
            if options.only not in name or (done and not options.again):
                continue
            row = judge(settings, options.steps, seed, options.net, source)
            kept = [each for each in rows.get(name, []) if each not in done]
            rows[name] = [*kept, row]
            RESULTS.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")
            print(
                f"{name:42s} seed {seed}  {row['bits']:.3f} +- {row['stderr']:.3f}  {row['seconds']:.0f} s", flush=True
            )
    print(f"\n{options.steps} steps, {options.steps * BATCH * LENGTH / 1e6:.2f} M characters")
    mean = {name: [r["bits"] for r in each if kind_of(r) == kind] for name, each in rows.items()}
    for name in sorted(
        (name for name in METHODS if mean.get(name)), key=lambda name: sum(mean[name]) / len(mean[name])
    ):
        bits = torch.tensor(mean[name], dtype=torch.float64)
        spread = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
        print(f"{name:42s} {float(bits.mean()):.3f} +- {spread:.3f} over {len(bits)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
