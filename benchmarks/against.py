"""What a change costs: solvers, training and sampling of this tree beside those of another one, in one run.

    git worktree add /tmp/before COMMIT
    python benchmarks/against.py /tmp/before [--rounds 5]

Each tree is measured in processes of its own, which take turns; a figure is the least processor time of all rounds, on
one thread, and the ratio of the two. The cases are written with what both trees have: a walk of ready-made beliefs (the
host cost of a step), a step of the demo's run, of a small MLP's and of a DiT's, and samples of the demo's network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS, WARM, TIMED = 50, 6, 14
# glibc keeps what is freed: else chance decides whether a step's tensors are mapped anew, at ten times the cost
KEPT = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "8388608", "MALLOC_MMAP_THRESHOLD_": "33554432"}


def walks() -> Iterator[tuple[str, Callable[[], Any], int]]:
    """(name, work, steps in it) of solvers whose model answers at once."""
    import torch

    import sfumato as sf
    from sfumato import solvers
    from sfumato.schedules import Cosine

    curve = Cosine()
    named = {"DDIM": solvers.DDIM(), "DDPM": solvers.DDPM(), "Multistep(2)": solvers.Multistep(2),
             "default": solvers.default(exact=True)}  # fmt: skip
    for shape in ((1, 3, 8, 8), (64, 3, 32, 32)):
        z = torch.randn(shape)
        belief = sf.Estimate(z, 0.5, curve, x=torch.randn(shape))

        class Ready:
            process = sf.Gaussian(curve)
            said = belief

            def __call__(self, z: Any, t: Any) -> Any:
                return self.said

        ready = Ready()
        for name, solver in named.items():
            plan = solver.plan(curve, STEPS)
            drawn = torch.randn(shape)
            source = (lambda step, z, drawn=drawn: drawn) if plan.stochastic else None

            def walk(plan: Any = plan, model: Any = ready, z: Any = z, source: Any = source) -> None:
                for _ in plan.run(model, z, source):
                    pass

            yield f"{name}, {'x'.join(map(str, shape))}, a step", walk, STEPS


def steps(name: str) -> Iterator[Any]:
    """The loop of a run: that of the demo, of an MLP on points, of a DiT."""
    import torch

    import sfumato as sf
    from sfumato.nets import MLP, DiT
    from sfumato.training import TrainConfig
    from sfumato.training.loop import fit
    from sfumato.training.run import prepared

    config = TrainConfig(steps=100_000, threads=1)
    if name == "demo":
        config, source, model = prepared("fashion", None, config, torch.device("cpu"))
        return fit(model, source.x, config, source.labels)
    torch.manual_seed(0)
    shape = (2,) if name == "MLP" else (3, 32, 32)
    net = MLP(2) if name == "MLP" else DiT(shape, patch=4, width=192, depth=4, heads=3)
    return fit(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow())), torch.randn(1280, *shape), config)


def sampler() -> Callable[[], Any]:
    import torch

    import sfumato as sf
    from sfumato.training import TrainConfig
    from sfumato.training.run import prepared

    _, _, model = prepared("fashion", None, TrainConfig(steps=10), torch.device("cpu"))
    return lambda: sf.sample(model, 16, 10, label=torch.arange(16) % 10)


def measure() -> dict[str, float]:
    """Seconds of processor time of each case, the least of several."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, float] = {}

    def least(name: str, work: Callable[[], Any], count: int, repeats: int) -> None:
        for _ in range(repeats):
            start = time.process_time()
            work()
            found[name] = min(found.get(name, float("inf")), (time.process_time() - start) / count)

    for name, work, count in walks():
        least(name, work, count, 30)
    for name in ("demo", "MLP", "DiT"):
        loop = steps(name)
        list(islice(loop, WARM))
        least(f"{name}, a step of training", lambda loop=loop: next(loop), 1, TIMED)
        loop.close()
    least("demo's network, 16 samples in 10 steps", sampler(), 1, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="the other tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "against.json")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure()))
        return
    if asked.before is None or not (asked.before / "src" / "sfumato").is_dir():
        parser.error("give the folder of another checkout of this project")
    trees = {"before": asked.before.resolve(), "now": HERE.parent}
    least: dict[str, dict[str, float]] = {name: {} for name in trees}
    for turn in range(asked.rounds):
        for name in list(trees)[:: -1 if turn % 2 else 1]:
            env = {**os.environ, **KEPT, "PYTHONPATH": str(trees[name] / "src"), "OMP_NUM_THREADS": "1"}
            words = [sys.executable, __file__, "--one"]
            done = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True)
            for case, seconds in json.loads(done.stdout).items():
                least[name][case] = min(seconds, least[name].get(case, float("inf")))
    from record import commit, hardware

    ratios = {case: least["now"][case] / seconds for case, seconds in least["before"].items()}
    for case, ratio in ratios.items():
        before, now = (1e6 * least[name][case] for name in trees)
        print(f"{case:<45} {before:12,.1f} us {now:12,.1f} us   {ratio:6.3f}")
    git = ["git", "-C", str(asked.before), "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True)
    facts = {"commit": commit(), "before": head.stdout.strip(), "hardware": hardware(), "rounds": asked.rounds}
    asked.out.write_text(json.dumps({**facts, "seconds": least, "ratio": ratios}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
