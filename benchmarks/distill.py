"""Every method of distillation at equal CPU time, beside the teacher by the solver multistep and its tuned plans.

    python benchmarks/distill.py --seconds 60 --seeds 3 --other-seconds 30

    python benchmarks/distill.py --methods trajectory-consistency --seeds 2 --first-seed 3 --steps 1894 --append --tuned

The default has several seeds, each other method one; the second line adds two seeds of as many steps as those before.
The teacher is a network trained on a mixture of three anisotropic modes in the plane; students learn from its file
alone. A figure is the root mean square distance to the teacher's own fine solution on the same noise, in deviations of
the data (`sfumato.training.ladder`), and the sliced Wasserstein distance of the same samples. Results are in
results/distill.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from sfumato.distillation import AUTO
from sfumato.training.console import Silent
from sfumato.training.hooks import Between
from sfumato.training.ladder import CALLS, FINE, ladder

LAW = sf.exact.GaussianMixture(
    [0.3, 0.3, 0.4],
    [[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.2]],
    [[[0.1, 0.05], [0.05, 0.1]], [[0.2, -0.05], [-0.05, 0.05]], [[0.05, 0.0], [0.0, 0.15]]],
)
METHODS = (
    AUTO, "semigroup", "shortcut", "direct-distillation", "progressive-distillation", "lagrangian", "mean-flow",
    "improved-mean-flow", "consistency-distillation", "consistency-training", "distribution-matching",
    "moment-matching", "score-identity",
)  # fmt: skip
MEASURED_CALLS = (1, 2, 3, 4, 6, 8)
NET = "MLP(width=128, depth=3)"
FIRST, MEASURED = 10, 40  # steps that are not counted, and all steps, of the run that measures the cost of a step
SAMPLES = 2000  # of a Wasserstein distance


def sliced(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """The sliced 2-Wasserstein distance of two sets of n points in the plane, by equally spaced directions."""
    angle = torch.arange(directions, dtype=torch.float64) * torch.pi / directions
    lines = torch.stack((angle.cos(), angle.sin()))
    return float(((a @ lines).sort(0)[0] - (b @ lines).sort(0)[0]).square().mean().sqrt())


def distilled(teacher: Path, folder: Path, method: str, seed: int, steps: int, **more: Any) -> Any:
    return sf.distill(
        teacher, folder, method=method, calls=CALLS, steps=steps, seed=seed, sample_every=0, snapshots=0, batch=256,
        console=Silent(), **more,
    )  # fmt: skip


def affordable(teacher: Path, folder: Path, method: str, seconds: float) -> int:
    """The number of steps of a method in so many seconds of CPU time."""
    at: list[float] = []
    hear = lambda session: session.hooks.append(Between(lambda: at.append(time.process_time())))  # noqa: E731
    distilled(teacher, folder, method, 0, MEASURED, on_start=hear)
    return max(1, int(seconds * (MEASURED - 1 - FIRST) / (at[-1] - at[FIRST])))


def measured(student: Any, teacher: Any) -> dict[str, dict[str, float]]:
    """calls -> {"student", "multistep", names of plans: rms; "w2": of the student}."""
    scale = float(sf.sample(teacher, SAMPLES, FINE, "heun", 2).double().std())
    fine = sf.sample(teacher, SAMPLES, FINE, "heun", 2).double() / scale
    found: dict[str, dict[str, float]] = {str(calls): {} for calls in MEASURED_CALLS}
    for rung in ladder(student, teacher, MEASURED_CALLS):
        found[str(rung.calls)][rung.how] = rung.rms
    for calls in MEASURED_CALLS:
        found[str(calls)]["w2"] = sliced(sf.sample(student, SAMPLES, calls, seed=2).double() / scale, fine)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of a student by the default method")
    parser.add_argument("--seeds", type=int, default=3, help="students by the default method")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each student, instead of what its CPU seconds allow")
    parser.add_argument("--append", action="store_true", help="to the results that are there")
    parser.add_argument("--other-seconds", type=float, default=30.0, help="CPU seconds of one by another method")
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--tuned", type=int, nargs="*", default=[2, 3, 4, 6], help="calls of the teacher's tuned plans")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distill.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    if args.append:
        settings, rows = map(json.loads(args.out.read_text()).get, ("settings", "rows"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = sf.train(
            LAW.sample(8192, 0).float(), place / "teacher", net=NET, steps=args.teacher_steps, batch=256,
            sample_every=0, snapshots=0, console=Silent(),
        )  # fmt: skip
        file = run.path / "model.safetensors"
        for calls in args.tuned:
            sf.serialization.store_plan(file, sf.tune(run.denoiser, calls))
        teacher = sf.load(file)
        for method in args.methods:
            seconds, seeds = (args.seconds, args.seeds) if method == AUTO else (args.other_seconds, 1)
            steps = args.steps or affordable(file, place / f"{method}-cost", method, seconds)
            for seed in range(args.first_seed, args.first_seed + seeds):
                row = {"method": method, "seed": seed, "cpu_seconds": seconds, "steps": steps}
                try:
                    start = time.process_time()
                    student = distilled(file, place / f"{method}-{seed}", method, seed, steps).denoiser
                    row = row if args.steps is None else {**row, "cpu_seconds": round(time.process_time() - start, 1)}
                    rows.append({**row, "calls": measured(student, teacher)})
                except sf.SfumatoError as error:  # a run that goes astray is stopped
                    rows.append({**row, "stopped": str(error)})
                print(json.dumps(rows[-1]), flush=True)
                args.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
