"""What a recorded figure names: the machine and the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent


def hardware() -> dict[str, str | int]:
    """The processor, what it multiplies in, and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "features": " ".join(name for name in known if name in facts.get("flags", "").split()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def commit() -> str:
    """The commit that is measured, marked where files of the package differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(HERE.parent / "src"))
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def kept(path: Path, row: dict[str, Any], keys: Sequence[str]) -> None:
    """Add a row to a file of rows, in the place of the one of the same values of `keys`."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [each for each in old if any(each[key] != row[key] for key in keys)]
    whole = {"machine": hardware(), "commit": commit(), "rows": [*rows, row]}
    path.write_text(json.dumps(whole, indent=1) + "\n")
