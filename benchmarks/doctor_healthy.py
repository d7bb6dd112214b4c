"""False alarms of the doctor: healthy runs of many settings, each of which may be given no code.

    OMP_NUM_THREADS=1 python benchmarks/doctor_healthy.py [--part 0/2] [--only TEXT] [--limit N] [--again]

Every schedule with every target, every weight with several densities of noise levels, and every kind of data with both
optimisers and precisions, classes or none, seeds in turn: 500 steps each of the smallest network on a processor. What
`sf.doctor` says of each run, and what the run said of itself, goes to results/doctor_healthy.json; runs that are in it
are not made again without --again. An alarm stands beside the hold-out loss over that of a guess that looks at nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
import tempfile
import time
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from record import HERE, commit, hardware

sys.path.insert(0, str(HERE.parent / "tests"))
import sfumato as sf  # noqa: E402
from fault_cases import QUICK, moons, pictures, signals, table  # noqa: E402
from sfumato.noise import permutation  # noqa: E402
from sfumato.registry import Named, names  # noqa: E402
from sfumato.training.console import Silent  # noqa: E402

RESULTS = HERE / "results/doctor_healthy.json"
STEPS, MEASURED = 500, commit()
RATE = {"muon": 4e-3, "adamw": 2e-3}
# name -> (data, labels, settings); paths bring their labels
DATA: dict[str, Any] = {
    "points": lambda: (moons()[0], None, {}),
    "points with classes": lambda: (*moons(), {}),
    "a table": lambda: (table()[0], None, {}),
    "a table with classes": lambda: (*table(), {}),
    "sequences": lambda: (signals()[0], None, {}),
    "sequences with classes": lambda: (*signals(), {}),
    "digits": lambda: (sf.data.open("digits").x.numpy(), None, {}),
    "digits with classes": lambda: ("digits", None, {}),
    "emoji with classes": lambda: ("emoji", None, {"size": 16}),
    "blobs": lambda: (pictures(), None, {}),
    "volumes": lambda: (pictures()[:, :1, None].repeat(4, 2), None, {}),
}
# by turns for the objectives, of which the cheap ones train fastest
TURNS = (
    "points with classes", "a table", "sequences with classes", "points", "a table with classes", "digits with classes",
    "points with classes",
)  # fmt: skip


class Case(NamedTuple):
    """data: a key of DATA; settings: those of `sf.train` beside the usual ones, sorted by name."""

    data: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return ", ".join([self.data, *(f"{name} {value}" for name, value in self.settings)])


MOVING = [name for name, make in Named("density").items() if make().moves]
DERIVED = ("shifted", "tabulated", "from-betas", "zero-terminal-snr")  # made of others
SCHEDULES = [name for name in names("schedule") if name not in DERIVED]


def case(data: str, optimizer: str, precision: str, seed: int, **more: Any) -> Case:
    """A case with the usual rate of its optimiser."""
    named = {"optimizer": optimizer, "precision": precision, "seed": seed, "lr": RATE[optimizer], **more}
    return Case(data, tuple(sorted(named.items())))


def cases() -> list[Case]:
    """All of them, shuffled, so that any part stands for the whole."""
    kinds, ways = cycle(TURNS), cycle(product(("muon", "adamw"), ("float32", "bfloat16")))
    found: list[Case] = []
    for k, (schedule, target) in enumerate(product(SCHEDULES, names("target"))):
        found.append(case(next(kinds), *next(ways), k % 5, schedule=schedule, target=target))
    weights, schedules = names("weight"), cycle(("flow", "cosine", "log-linear", "edm", "linear"))
    for k, (weight, times) in enumerate(islice(product(weights, names("density")), 0, None, 4)):
        found.append(case(next(kinds), *next(ways), k % 5, weight=weight, times=times, schedule=next(schedules)))
    plain = [times for times in names("density") if times not in MOVING]
    found += [case(next(kinds), *next(ways), 5, times=times) for times in plain]
    for data, optimizer, precision in product(DATA, RATE, ("float32", "bfloat16")):
        found.append(case(data, optimizer, precision, 6))
    parts = (("variance", "learned"), ("energy", True), ("ema", 0.0), ("holdout", 0.0))
    for data, part in product(("points", "points with classes", "digits", "digits with classes"), parts):
        found.append(case(data, "muon", "float32", 7, **dict([part])))
    return [found[i] for i in permutation(0, 0, len(found)).tolist()]


def judge(one: Case) -> dict[str, Any]:
    """A run, and what was said of it."""
    x, labels, more = DATA[one.data]()
    settings = {**QUICK, **dict(one.settings), **more, "steps": STEPS}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            sf.train(x, run, labels=labels, console=Silent(), **settings)
        except sf.SfumatoError as error:  # settings that are refused, or cannot be trained: no healthy run
            print(f"  stopped                     {one.name}: {error}", flush=True)
            return {"case": one.name, "data": one.data, "settings": dict(one.settings), "stopped": str(error)}
        report = sf.doctor(run, **({} if isinstance(x, str) else {"data": x, "labels": labels}))
        log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held = next((line for line in reversed(log) if "valid_raw" in line), None)
    row = {
        "case": one.name, "data": one.data, "settings": dict(one.settings), "steps": log[-1]["step"],
        "found": sorted(report.codes), "what": [str(finding) for finding in report.findings],
        "evidence": [finding.evidence for finding in report.findings], "unchecked": sorted(report.unchecked),
        "held-out loss over the guess's": held and held["valid_raw"] / held["valid_trivial"],
        "processor seconds": round(time.process_time() - started, 1), "commit": MEASURED,
    }  # fmt: skip
    print(f"{row['processor seconds']:6.1f} s  {', '.join(row['found']) or 'nothing':<20} {one.name}", flush=True)
    return row


def keep(row: dict[str, Any]) -> None:
    """Into the file, where rows of other processes stay."""
    with (Path(tempfile.gettempdir()) / "doctor_healthy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = {each["case"]: each for each in _rows()} | {row["case"]: row}
        ordered = [rows[one.name] for one in cases() if one.name in rows]
        ended = [each for each in ordered if "found" in each]
        counts = {"runs": len(ended), "alarms": sum(bool(each["found"]) for each in ended)}
        told = {"hardware": hardware(), **counts, "stopped": len(ordered) - len(ended), "rows": ordered}
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")


def _rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", default="0/1", help="I/N: every N-th case from the I-th on")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--limit", type=int, help="the first so many cases of the shuffled list")
    parser.add_argument("--again", action="store_true", help="make runs again that are in the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, parts = map(int, options.part.split("/"))
    wanted = [one for one in cases()[: options.limit] if options.only in one.name][first::parts]
    for one in wanted:
        if options.again or one.name not in {row["case"] for row in _rows()}:
            keep(judge(one))
    rows = _rows()
    alarms = [row for row in rows if row.get("found")]
    stopped = sum("stopped" in row for row in rows)
    print(f"{len(alarms)} alarms in {len(rows) - stopped} healthy runs; {stopped} more were stopped or refused.")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
