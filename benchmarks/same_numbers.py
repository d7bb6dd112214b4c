"""Whether a change left every number as it was: runs, samples and likelihoods of this tree and of another one.

    git worktree add /tmp/before COMMIT
    python benchmarks/same_numbers.py /tmp/before

Each tree trains the same small models (pictures, points, points with classes, another optimiser) in a process of its
own, samples them by two solvers and measures their likelihood in two ways; a line says whether all bits are the same.
The exit status is 1 where one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES: dict[str, dict[str, Any]] = {
    "digits": {"steps": 25},
    "points": {"steps": 60, "batch": 64},
    "points with classes": {"steps": 60, "batch": 64, "weight": "sigmoid", "precision": "float32"},
    "points by AdamW": {
        "steps": 60, "batch": 64, "optimizer": "adamw", "times": "uniform", "precision": "float32"
    },
}  # fmt: skip


def bits(values: Any) -> str:
    """A hash of numbers."""
    return hashlib.sha256(values.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()[:16]


def measure(folder: Path) -> dict[str, str]:
    """Hashes and figures of each case."""
    import numpy as np
    import torch

    import sfumato as sf
    from sfumato.training.console import Silent

    points = np.random.default_rng(0).normal(size=(400, 2)).astype("float32") * 3 + 1
    classes, found = np.random.default_rng(1).integers(0, 3, 400), dict[str, str]()
    for name, settings in CASES.items():
        labelled = "classes" in name
        data, labels = ("digits" if name == "digits" else points), (classes if labelled else None)
        how: dict[str, Any] = {"net": "tiny", "threads": 1, "seed": 3, "sample_every": 0, "snapshots": 2, **settings}
        run = sf.train(data, folder / name.replace(" ", "-"), labels=labels, console=Silent(), **how)
        model, cond = run.denoiser, {"label": torch.arange(6) % 3} if labelled or name == "digits" else {}
        found[f"{name}: weights"] = bits(torch.cat([p.flatten().double() for p in model.parameters()]))
        found[f"{name}: losses"] = json.dumps([[v.get("loss"), v.get("valid_raw")] for v in run.metrics])
        found[f"{name}: samples"] = bits(sf.sample(model, 6, 8, seed=5, normalised=True, **cond))
        ddpm = sf.solvers.DDPM()
        found[f"{name}: samples by DDPM"] = bits(sf.sample(model, 6, 8, solver=ddpm, seed=5, normalised=True, **cond))
        if name != "digits":
            for method in ("ode", "elbo"):
                value = sf.log_prob(model, torch.as_tensor(points[:6]), method, steps=8, **cond).value
                found[f"{name}: log p by {method}"] = bits(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="the other tree")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "same_numbers.json")
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measure(asked.one)))
        return
    if asked.before is None or not (asked.before / "src" / "sfumato").is_dir():
        parser.error("give the folder of another checkout of this project")
    found = []
    for tree in (asked.before.resolve(), HERE.parent):
        env = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "SFUMATO_CACHE": "off"}
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--one", folder]
            done = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    before, now = found
    same = {name: before.get(name) == value for name, value in now.items()}
    for name, is_same in same.items():
        print(f"{name:<36} {'the same, bit for bit' if is_same else 'DIFFERS'}")
    from record import commit, hardware

    git = ["git", "-C", str(asked.before), "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    facts = {"commit": commit(), "before": head, "hardware": hardware(), "same": same}
    asked.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(same.values()))


if __name__ == "__main__":
    main()
