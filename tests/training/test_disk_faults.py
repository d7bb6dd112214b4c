"""A fault at each call of the file system: what it leaves is whole, and a resumed run has the bits of one without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disk_faults import FAULTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each event has a process of its own, by fork")
SCRIPT = Path(__file__).parent.parent / "disk_faults.py"


def trials(folder: Path, every: int, *faults: str) -> list[dict]:
    named = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, str(SCRIPT), str(folder), str(every), *faults]
    done = subprocess.run(words, capture_output=True, text=True, env=named)
    assert done.returncode == 0, done.stderr
    first, *rest = map(json.loads, done.stdout.splitlines())
    assert first["events"] > 250 and len(rest) == -(-first["events"] // every)
    return rest


def check(found: list[dict]) -> None:
    for each in found:
        assert each["then"] == "", each
        ended = each["first"] == "killed" if each["fault"] == "kill" else each["first"].startswith("sentence: ")
        # a grid that cannot be written is a note, and an old checkpoint that cannot be deleted waits for the next
        assert ended or (each["fault"] != "kill" and each["first"] == ""), each


@pytest.mark.timeout(600)
def test_every_tenth_event(tmp_path):
    found = trials(tmp_path, 10, *FAULTS)
    check(found)
    assert {each["first"] for each in found if each["fault"] == "kill"} == {"killed"}
    assert sum(each["first"].startswith("sentence: ") for each in found) > len(found) / 4


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_event(fault, tmp_path):
    check(trials(tmp_path, 1, fault))
