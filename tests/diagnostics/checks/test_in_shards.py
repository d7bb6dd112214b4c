"""A run in shards is told of its faults as one in a single process is, by itself and by the doctor."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato as sf
import shard_faults
from sfumato.distributed import ALONE
from sfumato.training import checkpoint

SCRIPT = Path(shard_faults.__file__)


def trained(folder: Path, *names: str) -> None:
    """Run folders of two processes in shards, folder/NAME."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(SCRIPT), str(folder), *names], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names:
        assert checkpoint.found(folder / name)[0].is_dir(), "a folder of shards"


def itself(run: Path) -> list[tuple[str, int | None]]:
    """What a run said of itself, and when."""
    path = run / "health.json"
    return [(f["code"], f["step"]) for f in json.loads(path.read_text())] if path.exists() else []


def alike(folder: Path, name: str, tmp: Path) -> None:
    """The same codes with figures that agree, for the same fault in one process."""
    x, labels = shard_faults.data(name)
    alone = shard_faults.run(name, tmp / "alone", ALONE)
    ours, theirs = (sf.doctor(run, data=x, labels=labels) for run in (folder / name, alone))
    assert ours.codes == theirs.codes == ({name} - {"healthy"}), str(ours)
    assert (ours.checked, ours.unchecked) == (theirs.checked, theirs.unchecked)
    assert itself(folder / name) == itself(alone)
    for one, other in zip(ours.findings, theirs.findings, strict=True):
        assert one.what == other.what and one.evidence.keys() == other.evidence.keys()


@pytest.mark.slow
def test_faults_in_shards_are_named_alike(tmp_path):
    trained(tmp_path, "lr-high", "frozen")
    for name in ("lr-high", "frozen"):
        alike(tmp_path, name, tmp_path)
    assert itself(tmp_path / "lr-high") == [("lr-high", None)], "before the first step"


@pytest.mark.slow
def test_more_faults_in_shards_are_named_alike(tmp_path):
    names = ("healthy", "condition-dead", "lr-low", "labels-shuffled")
    trained(tmp_path, *names)
    for name in names:
        alike(tmp_path, name, tmp_path)
    assert itself(tmp_path / "condition-dead") == [("condition-dead", None)], "before the first step"
    assert itself(tmp_path / "lr-low") == [("lr-low", 120)] and itself(tmp_path / "healthy") == []
