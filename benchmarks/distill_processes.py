"""Students of blurred pictures and of pairs, beside their teachers by a solver.

    python benchmarks/distill_processes.py --seeds 3          # about 10 CPU minutes

Pairs: independent sources of two modes become three modes in the plane (of the bridge, x + 0.3 x'), teachers of 300
steps of 128, students of 300 steps of 64 by "auto", from the teacher's file and the pairs. Pictures: digits of 8 x 8,
teachers of 300 steps of 32, students of 150 steps of 32 by "auto", from the teacher's file alone. A figure is that of
the ladder: the root mean square distance to the teacher's own fine solution on the same noise or source, in deviations
of the data. Results are in results/distill_processes.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import sfumato as sf
from distill import LAW
from record import HERE, commit, hardware
from sfumato.training.console import Silent

SOURCE = sf.exact.GaussianMixture([0.5, 0.5], [[0.0, 2.0], [0.0, -2.0]], [[[0.2, 0.0], [0.0, 0.2]]] * 2)
PAIRS, BLURRED = ("rectified-flow", "bridge", "interpolant"), ("blur", "coloured", "subspace")
CALLS = (1, 2, 4, 8)


def pairs(process: str) -> dict[str, Any]:
    x, source = LAW.sample(4000, 1).float(), SOURCE.sample(4000, 2).float()
    return {"x": (x + 0.3 * source if process == "bridge" else x).numpy(), "input": source.numpy()}


def row(process: str, seed: int, folder: Path) -> dict[str, Any]:
    how: dict[str, Any] = {"seed": seed, "console": Silent(), "sample_every": 0, "snapshots": 0}
    paired, start = process in PAIRS, time.process_time()
    data: Any = pairs(process) if paired else "digits"
    batch, steps = (128, 300) if paired else (32, 300)
    sf.train(data, folder / "teacher", steps=steps, batch=batch, process=process, net="tiny", **how)
    taught = time.process_time()
    how |= {"data": data, "steps": 300, "batch": 64} if paired else {"steps": 150, "batch": 32, "samples": 1024}
    sf.distill(folder / "teacher", folder / "student", calls=(1, 2), **how)
    ladder = json.loads((folder / "student" / "ladder.json").read_text())
    seconds = {"teacher": taught - start, "student": time.process_time() - taught}
    return {"process": process, "seed": seed, "cpu_seconds": seconds, "rungs": ladder["rungs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of the pairs; pictures have one")
    parser.add_argument("--processes", nargs="*", default=[*PAIRS, *BLURRED])
    args = parser.parse_args()
    rows = []
    print(f"{'process':16}{'seed':>5}  " + "  ".join(f"{calls} call{'s' * (calls > 1):12}" for calls in CALLS))
    for process in args.processes:
        for seed in range(args.seeds if process in PAIRS else 1):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(found := row(process, seed, Path(folder)))
            rms = {(each["calls"], each["how"]): each["rms"] for each in found["rungs"]}
            (solver,) = {how for _, how in rms} - {"student"}
            cells = (f"{rms[calls, 'student']:.3f} ({rms[calls, solver]:.3f})" for calls in CALLS)
            print(
                f"{process:16}{seed:5}  " + "   ".join(cells) + f"   {found['cpu_seconds']['student']:.0f} s",
                flush=True,
            )
    made = {"commit": commit(), "hardware": hardware(), "rows": rows}
    (HERE / "results" / "distill_processes.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
