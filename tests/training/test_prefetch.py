"""Threads that fetch samples ahead: the same run with any number of them, and nothing left behind."""

import threading

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import nets
from sfumato.data import DataSpec
from sfumato.data.column import Column
from sfumato.data.rows import DECODING, READING, Mapped, Rows, Subset
from sfumato.data.source import Source
from sfumato.errors import SfumatoError
from sfumato.training import waiting
from sfumato.training.batches import Batches
from sfumato.training.config import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.loop import fit
from sfumato.training.waiting import FETCHING, NORMALISING, Waiting

X = np.random.default_rng(0).integers(0, 255, (57, 3), dtype=np.uint8)
LABELS = torch.arange(57) % 3
HOW = {"steps": 12, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "console": Silent()}


class Counted(Rows):
    """Rows of X that note which were asked for, and fail at the one that is named."""

    def __init__(self, fails: int = -1) -> None:
        super().__init__(X.shape, torch.uint8)
        self.asked: list[int] = []
        self.fails = fails

    def take(self, rows: np.ndarray) -> torch.Tensor:
        if self.fails in rows:
            raise SfumatoError("row 13 cannot be read any more")
        self.asked += rows.tolist()
        return torch.from_numpy(X[rows])


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return Mapped(np.load(tmp_path / "x.npy", mmap_mode="r"), "x.npy")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sfumato-data")]


def source(x) -> Source:
    label = Column(LABELS.numpy(), np.ones(len(X), bool), ("a", "b", "c"))
    return Source(x, "array", "x", {"label": label})


def test_rows_are_what_a_tensor_is(mapped):
    x = torch.from_numpy(X)
    index = torch.tensor([5, 3, 56, 3])
    for rows in (mapped, Counted(), Subset(x, torch.arange(57)), Subset(mapped, torch.arange(57))):
        assert rows.shape == x.shape and rows.dtype == x.dtype and len(rows) == 57 and rows.nbytes == x.nbytes
        assert torch.equal(rows[7], x[7]) and torch.equal(rows[-1], x[-1])
        assert torch.equal(rows[3:50:4], x[3:50:4]) and torch.equal(rows[9:9], x[9:9]) and torch.equal(rows[:], x)
        assert torch.equal(rows[index], x[index])
        with pytest.raises(IndexError):
            rows[57]
    assert torch.equal(Subset(mapped, index)[torch.tensor([2, 0])], x[[56, 5]])


def test_statistics_are_the_same_bits_wherever_the_rows_are(mapped):
    wanted = DataSpec.fit(source(torch.from_numpy(X)))
    assert DataSpec.fit(source(mapped)) == wanted and DataSpec.fit(source(Counted())) == wanted


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A run whose data are in memory."""
    return sf.train(source(torch.from_numpy(X)), out=tmp_path_factory.mktemp("runs") / "usual", **HOW)


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_workers_changes_nothing(workers, usual, mapped, tmp_path):
    other = sf.train(source(mapped), out=str(tmp_path / "other"), workers=workers, **HOW)
    for (name, a), b in zip(
        usual.denoiser.net.state_dict().items(), other.denoiser.net.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    for a, b in zip(usual.metrics, other.metrics, strict=True):
        timed = {"elapsed", "eta", "rate", "data_wait"}
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}
    assert all(0 <= line["data_wait"] <= 1 for line in other.metrics if "loss" in line)
    assert not threads()


class Stops(Silent):
    """Asks a run to stop after its third step."""

    def __call__(self, progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt


def test_a_run_that_is_stopped_leaves_no_thread_and_goes_on_as_the_run_in_one(usual, mapped, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sf.train(source(mapped), out=str(tmp_path / "parts"), workers=2, **{**HOW, "console": Stops()})
    assert not threads()
    parts = sf.resume(tmp_path / "parts", data=source(mapped), workers=1, console=Silent())
    assert len(parts.metrics) == len(usual.metrics)
    kept = [run.denoiser.net.state_dict().values() for run in (usual, parts)]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_batches_are_fetched_ahead_in_order_and_no_further():
    rows = Counted()
    spec = DataSpec.fit(source(torch.from_numpy(X)))
    batches = Batches(rows, None, spec, 0, 0.0, torch.device("cpu"), workers=1)
    plain = Batches(torch.from_numpy(X), None, spec, 0, 0.0, torch.device("cpu"))
    for start in (0, 10, 20, 50, 60, 10, 20):  # over the end of an epoch, and back to an earlier place
        assert torch.equal(batches.take(start, 10)[0], plain.take(start, 10)[0])
    batches.close()
    wanted = plain.rows(0, 200).tolist()
    assert rows.asked[:30] == wanted[:30] and len(rows.asked) <= 10 * (7 + 2 * 3)
    assert not threads()


def test_an_error_in_a_thread_is_one_sentence_where_the_batch_is_needed():
    rows = Counted(fails=13)
    spec = DataSpec.fit(source(torch.from_numpy(X)))
    net = nets.build((3,), classes=0, size="tiny", samples=57)
    denoiser = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec)
    config = TrainConfig(steps=20, batch=8, workers=2)
    with pytest.raises(SfumatoError, match="row 13 cannot be read any more"):
        for _ in fit(denoiser, rows, config):
            pass
    assert not threads()


@pytest.mark.parametrize(
    ("cause", "words"),
    [(READING, "faster disk"), (DECODING, "enlarge the cache"), (NORMALISING, "a larger --net")],
)
def test_waiting_is_said_once_with_cause_and_cure(cause, words, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    rows = Counted()
    told = Waiting(rows, workers=1)

    def passes(seconds: float) -> None:
        now[0] += seconds

    if cause != NORMALISING:
        with rows.spent.on(cause):
            passes(4.0)
    told.report()
    with told.on(NORMALISING if cause == NORMALISING else FETCHING):
        passes(4.0)
    passes(36.0)
    first, second = told.report(), told.report()
    assert first["data_wait"] == pytest.approx(0.1) and first["advice"] is None  # not more than a tenth
    assert second["data_wait"] == 0
    with told.on(NORMALISING if cause == NORMALISING else FETCHING):
        passes(1.0)
    passes(1.0)
    said = told.report()
    assert said["data_wait"] == pytest.approx(0.5)
    assert f"50% of the time for their data ({cause})" in said["advice"] and words in said["advice"]
    with told.on(FETCHING):
        passes(9.0)
    assert told.report()["advice"] is None  # once


def test_little_that_was_waited_is_not_spoken_of(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    told = Waiting(torch.zeros(3, 1), workers=0)
    with told.on(FETCHING):
        now[0] += waiting._SURE / 2
    assert told.report()["advice"] is None
