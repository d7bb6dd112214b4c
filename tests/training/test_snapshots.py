"""Snapshots of averages: how near they come, how large they are, what happens to one that is gone."""

import math

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.training import snapshots


def wandering(steps: int):
    """Averages that change less and less, as those of a run do, beside a counter and numbers of no size."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"kernel": (24, 16, 3, 3), "matrix": (32, 40), "bias": (32,), "thin": (20, 1), "scale": ()}
    now = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for k in range(1, steps + 1):
        made = {}
        for width in (0.05, 0.1):
            now = {n: v + 0.3 / k * torch.randn(v.shape, generator=generator) for n, v in now.items()}
            made[width] = {**now, "counter": torch.tensor(k), "still": torch.ones(5)}
        yield k, made


def test_a_byte_a_weight_says_what_changed(tmp_path):
    """The error of a snapshot is that of its own change, and does not grow along the run."""
    kept, sizes = [], []
    for k, made in wandering(8):
        kept += made.values()
        sizes.append(snapshots.write(tmp_path, made, 10 * k, 640 * k).stat().st_size)
    found = snapshots.found(tmp_path)
    assert [one.step for one in found] == list(range(10, 90, 10)) and found[3].samples == 2560
    numbers = 2 * sum(v.numel() for v in kept[0].values())
    assert all(size < 1.1 * numbers + 6000 for size in sizes[1:])  # with a header and the scales
    before = None
    for (_, _, read), wanted in zip(snapshots.read(found), kept, strict=True):
        assert torch.equal(read["counter"], wanted["counter"]) and torch.equal(read["still"], wanted["still"])
        for name in ("kernel", "matrix", "bias", "thin", "scale"):
            error = read[name].double() - wanted[name]
            if before is None:
                assert torch.equal(read[name].half(), wanted[name].half())
            else:
                change = (wanted[name] - before[name]).abs().max()
                assert float(error.abs().max()) <= float(change) / 127 / 2 * 1.001 + 1e-6, name
        before = read


def test_a_snapshot_that_is_gone_is_named(tmp_path):
    for k, made in wandering(4):
        snapshots.write(tmp_path, made, k, k)
    snapshots.found(tmp_path)[1].path.unlink()
    with pytest.raises(SfumatoError, match=r"step_00000003\.safetensors changes the snapshot of step 2, which is gone"):
        list(snapshots.read(snapshots.found(tmp_path)))


def test_a_part_of_the_run_that_was_lost_is_written_anew(tmp_path):
    """After going back to step 3 the files are those of a run that never went further."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    steps = list(wandering(5))
    for k, made in steps:
        snapshots.write(once, made, k, k)
    for k, made in [*steps[:4], *steps[2:]]:
        snapshots.write(twice, made, k, k)
    files = [
        (a.path.read_bytes(), b.path.read_bytes()) for a, b in zip(*map(snapshots.found, (once, twice)), strict=True)
    ]
    assert len(files) == 5 and all(a == b for a, b in files)


def test_a_stretch_begins_anew(tmp_path):
    for k, made in wandering(10):
        snapshots.write(tmp_path, made, k, k)
    assert [one.base for one in snapshots.found(tmp_path)] == [None, 1, 2, 3, 4, 5, 6, 7, None, 9]
    last = list(snapshots.read(snapshots.found(tmp_path)[8:]))[-1][2]
    assert float((last["matrix"] - made[0.1]["matrix"]).norm() / made[0.1]["matrix"].norm()) < 1e-3


def test_numbers_that_half_precision_cannot_hold(tmp_path):
    large = {0.05: {"w": torch.tensor([[1e6, -3.0]])}, 0.1: {"w": torch.tensor([[1e6 + 64, -3.0]])}}
    snapshots.write(tmp_path, large, 1, 1)
    (first, second) = [weights["w"] for _, _, weights in snapshots.read(snapshots.found(tmp_path))]
    assert torch.equal(first, large[0.05]["w"]) and math.isclose(float(second[0, 0]), 1e6 + 64)
