"""What `sfumato plan` says against what `sfumato train` then takes, on five configurations of a CPU.

    python benchmarks/plan.py

Each is planned and trained to its end, both as commands in processes of their own. Time (1,000 steps, and the whole
process without its imports) has to be within 20 %, memory (the largest resident set, as the system tells it to the
parent) within 15 %. Nothing else may run on the machine meanwhile. The exit status is 1 where a line fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TIME, MEMORY, DISK = 0.20, 0.15, 0.10
ROOT = Path(__file__).resolve().parent
# name -> (data, settings): a table, small pictures, classes, a large network, long sequences in parts
CASES: dict[str, tuple[str, list[str]]] = {
    "points 2-D, small MLP": ("points", ["--batch", "256", "--steps", "400"]),
    "emoji 32 px, tiny U-Net": ("emoji", ["--size", "32", "--net", "tiny", "--steps", "200"]),
    "digits, small U-Net, classes": ("digits", ["--net", "small", "--steps", "400"]),
    "fashion, base U-Net, batch 32": ("fashion", ["--net", "base", "--batch", "32", "--steps", "120"]),
    "sequences 3 x 512, float32, parts of 16": (
        "waves", ["--precision", "float32", "--micro", "16", "--steps", "100", "--sample-every", "40"]
    ),
}  # fmt: skip


def made(place: Path) -> dict[str, str]:
    """Data sets that do not come with the package."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 20_000)
    points = np.stack((np.cos(angle), np.sin(2 * angle)), 1) + 0.1 * rng.normal(size=(20_000, 2))
    grid = np.linspace(0, 1, 512)
    rate, phase = rng.uniform(2, 20, (2000, 3, 1)), rng.uniform(0, 2 * np.pi, (2000, 3, 1))
    np.save(place / "points.npy", points.astype(np.float32))
    np.save(place / "waves.npy", np.sin(rate * grid + phase).astype(np.float32))
    return {name: str(place / f"{name}.npy") for name in ("points", "waves")}


def python(*words: str) -> tuple[float, int, str]:
    """(seconds, largest resident memory in bytes, standard output) of a process, `python WORDS`."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=err)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        said, notes = (file.seek(0) or file.read() for file in (out, err))
    if status:
        raise SystemExit(f"python {' '.join(words)} ended with status {status}: {notes}")
    return time.monotonic() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), said


def compared(name: str, data: str, settings: list[str], place: Path) -> dict[str, object]:
    """One configuration: what was planned and what it took."""
    run = str(place / name.replace(" ", "-"))
    cost, _, said = python("-m", "sfumato.cli", "plan", data, *settings, "--json")
    plan = json.loads(said)
    imports, _, _ = python("-c", "import sfumato.cli.train")
    seconds, train, _ = python("-m", "sfumato.cli", "train", data, *settings, "--out", run, "--json")
    last = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])
    size = sum(path.stat().st_size for path in Path(run).rglob("*") if path.is_file())
    thousand = 1000 * last["elapsed"] / last["step"]
    loop = sum(seconds for name, seconds in plan["parts"].items() if name not in ("start", "end"))
    figures = {
        "1,000 steps, s": (1000 * loop / plan["steps"]["value"], thousand, TIME),
        "total, s": (plan["total"]["value"], seconds - imports, TIME),
        "memory in training, MB": (plan["memory"]["train"] / 1e6, train / 1e6, MEMORY),
        "disk, MB": (plan["disk"]["total"] / 1e6, size / 1e6, DISK),
    }
    rows = {what: {"planned": a, "taken": b, "off": a / b - 1, "allowed": c} for what, (a, b, c) in figures.items()}
    return {"case": name, "settings": settings, "seconds_to_plan": cost, "figures": rows}


def shown(row: dict) -> list[str]:
    lines = [f"{row['case']} (planned in {row['seconds_to_plan']:.0f} s)"]
    for what, each in row["figures"].items():
        good = abs(each["off"]) <= each["allowed"]
        lines.append(
            f"  {'pass' if good else 'FAIL'}  {what:<24} planned {each['planned']:9.2f}  taken {each['taken']:9.2f}  "
            f"{each['off']:+6.1%} (within {each['allowed']:.0%})"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose names contain this")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "plan.json")
    args = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = made(place)
        for name, (data, settings) in CASES.items():
            if args.only and args.only not in name:
                continue
            rows.append(compared(name, files.get(data, data), settings, place))
            print("\n".join(shown(rows[-1])), flush=True)
    from record import commit, hardware  # they load torch, and a child counts what its parent holds as its own

    report = {"commit": commit(), "hardware": hardware(), "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    good = [abs(each["off"]) <= each["allowed"] for row in rows for each in row["figures"].values()]
    print(f"{sum(good)} of {len(good)} figures within what is allowed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
