"""Writes docs/reference/commands.md: what each command is for, an example with its real output, and its flags.

Run ``python scripts/command_pages.py`` after a change of the command line (some minutes: the examples train small
models, in a folder that goes). tests/test_docs.py says when a flag is missing from the page.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sfumato.cli import COMMANDS, usage

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/commands.md"
# in the order in which they are run: later ones use what earlier ones leave
EXAMPLES = {
    "demo": ["sfumato demo --minutes 0.5"],
    "inspect": ["sfumato inspect digits --out look.png"],
    "plan": ["sfumato plan digits --steps 600 --net tiny"],
    "train": ["sfumato train digits --steps 600 --net tiny"],
    "resume": ["sfumato resume runs/digits --steps 700"],
    "control": ["sfumato control runs/long stop"],
    "sample": ["sfumato sample runs/digits -n 16 --class 3 -o grid.png"],
    "info": ["sfumato info runs/digits"],
    "doctor": ["sfumato doctor runs/digits", "sfumato doctor --explain lr-high"],
    "runs": ["sfumato runs"],
    "average": ["sfumato average runs/digits --width 0.15"],
    "tune": ["sfumato tune runs/digits --steps 6 --points 128 --rounds 10"],
    "likelihood": ["sfumato likelihood runs/digits digits -n 4"],
    "evaluate": [
        "sfumato evaluate runs/digits -n 500",
        "sfumato evaluate runs/digits -n 500 --metric kid --sweep steps=5,10,20 --sweep solver=heun,unipc",
    ],
    "memorization": ["sfumato memorization runs/digits -n 128"],
    "explain-objective": [
        "sfumato explain-objective --target velocity --schedule flow --times logit-normal",
        "sfumato explain-objective --process masked --loss mask-predict",
    ],
    "certify": ["sfumato certify dpm++2m --quick"],
}
UNDER_WAY = "sfumato train digits --steps 100000 --net tiny --out runs/long"  # what `control` speaks to
HEAD = """# Commands

<!-- written by scripts/command_pages.py -->

Every command takes `--json` (the result as JSON on stdout, everything else on stderr), `--modules FILE` (Python files
of your own to run first, see [Extending](../extending.md)) and `--debug` (a traceback where something fails). A mistake
is one sentence and exit status 2. The outputs below are those of a processor whose two cores were shared with other
work; figures of time differ elsewhere.
"""


def words(line: str) -> list[str]:
    return [sys.executable, "-m", "sfumato.cli", *shlex.split(line)[1:]]


def output(line: str, folder: Path) -> str:
    """What a command says, on stdout and stderr together."""
    done = subprocess.run(
        words(line), cwd=folder, env=os.environ | {"COLUMNS": "100", "SFUMATO_CACHE": "off"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{line} ended with status {done.returncode}:\n{done.stdout}")
    return "\n".join(text.rstrip() for text in done.stdout.strip("\n").splitlines())


def controlled(line: str, folder: Path) -> str:
    """What `control` says to a run under way, which ends by it."""
    run = subprocess.Popen(words(UNDER_WAY), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "runs/long/metrics.jsonl"
    while not log.exists():
        if run.poll() is not None:
            raise SystemExit(f"{UNDER_WAY} ended before it was spoken to")
        time.sleep(0.2)
    said = output(line, folder)
    run.wait()
    return said


def block(line: str, text: str) -> str:
    return f"```sh\n{line}\n```\n\n```text\n{text}\n```\n"


def page(folder: Path) -> str:
    """The whole page, in the order of `sfumato --help`."""
    said = {
        name: "\n".join(block(line, (controlled if name == "control" else output)(line, folder)) for line in lines)
        for name, lines in EXAMPLES.items()
    }
    parts = [HEAD, f"```text\n{usage()}\n```\n"]
    for name, about in COMMANDS.items():
        flags = output(f"sfumato {name} --help", folder)
        parts.append(f"## {name}\n\n{about[0].upper()}{about[1:]}.\n\n{said.get(name, '')}\n```text\n{flags}\n```\n")
    return "\n".join(parts)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = page(Path(folder))
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
