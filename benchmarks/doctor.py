"""The fault suite as a table: what was seeded, what `sfumato doctor` says of it, and of healthy runs.

    python benchmarks/doctor.py [NAME ...]

Writes benchmarks/results/doctor.json, where rows of other cases stay, and from it docs/faults/README.md. The cases are
those of the tests (tests/fault_cases.py); each trains at most 500 steps on a processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from record import HERE, commit, hardware

sys.path.insert(0, str(HERE.parent / "tests"))
from fault_cases import FAULTS, HEALTHY  # noqa: E402
from sfumato.diagnostics.checks import CODES  # noqa: E402

RESULTS = HERE / "results/doctor.json"
PAGE = HERE.parent / "docs/faults/README.md"
INTRODUCTION = """# Faults that sfumato names

`sfumato doctor RUN` (a run folder: finished, stopped or under way), `sfumato doctor MODEL.safetensors --data DATA`, and
`sf.doctor(denoiser, data)` in a loop of one's own say what is wrong, each fault by a code; exit status 1 where there is
an error. A run looks for them by itself: at its data, at what the network can hear and at the length of a step before
the first one, at its log at each validation, at its network's answers twice (for less than a hundredth of its work), at
what its conditions say at the end; it says each code once, and keeps it in `health.json`.

What a fault explains is not reported again as another: a run whose data are in other units has no doubtful labels.

| code | what it says |
|---|---|
"""


def judge(name: str) -> dict[str, Any]:
    """One case: what was found, by whom, and how long it took."""
    fault = FAULTS.get(name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = (fault.case if fault else HEALTHY[name])(Path(folder))
        own = Path(folder) / "run/health.json"
        itself = [] if not own.exists() else [(f["code"], f["step"]) for f in json.loads(own.read_text())]
    wanted = [fault.code] if fault else []
    row = {
        "case": name, "words": fault.words if fault else name, "wanted": wanted, "found": sorted(report.codes),
        "said by the run": itself, "evidence": [f.evidence for f in report.findings],
        "seconds": round(time.monotonic() - started, 1), "right": sorted(report.codes) == wanted,
    }  # fmt: skip
    print(f"{'right' if row['right'] else 'WRONG':<6} {name:<28} {', '.join(row['found']) or 'nothing'}", flush=True)
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """docs/faults/README.md: the codes, the suite, the healthy runs."""
    lines = [INTRODUCTION + "\n".join(f"| [{code}]({code}.md) | {words} |" for code, words in CODES.items()), ""]
    lines += [
        "## The suite", "",
        "Every fault is put into a real run of at most 500 steps on a processor, as a user would put it there, and has "
        "to be given its own code and no other (`tests/diagnostics/checks/test_faults.py`, "
        "`python benchmarks/doctor.py`).", "",
        "| fault | named | the run itself said so at step |", "|---|---|---|",
    ]  # fmt: skip
    faults, healthy = ([r for r in rows if bool(r["wanted"]) == sick] for sick in (True, False))
    for row in faults:
        itself = ", ".join(str(step or 0) for code, step in row["said by the run"] if code in row["wanted"]) or "-"
        lines.append(f"| {row['words']} | {', '.join(row['found']) or 'nothing'} | {itself} |")
    lines += ["", "| healthy run | named |", "|---|---|"]
    lines += [f"| {row['words']} | {', '.join(row['found']) or 'nothing'} |" for row in healthy]
    right, kinds = sum(row["right"] for row in rows), len({code for row in faults for code in row["wanted"]})
    words = f"{len(faults)} faults of {kinds} kinds, {len(healthy)} healthy runs"
    return "\n".join([*lines, "", f"{right} of {len(rows)} as they should be: {words}."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="cases; all without any")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    names = names or [*FAULTS, *HEALTHY]
    found = {row["case"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    measured = commit()
    for name in names:
        found[name] = {"commit": measured, **judge(name)}
        rows = [found[each] for each in (*FAULTS, *HEALTHY) if each in found]
        RESULTS.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")
        PAGE.write_text(page(rows), encoding="utf-8")
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
