"""Long work is told of, quick work is not; a bar on a terminal, lines elsewhere."""

import io

import pytest

from sfumato import progress
from sfumato.progress import Count, CountBar, reporting_to


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(total: int | None = 4, fault: int | None = None) -> None:
    with progress.counting("Decoding pictures", total) as count:
        for k in range(4):
            if k == fault:
                raise KeyboardInterrupt
            count()


def test_what_is_quick_stays_silent(told, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 2.0)
    found = type(told)()
    with reporting_to(found):
        work()
    assert not found
    work()  # nobody listens


def test_every_step_and_the_end_are_told(told):
    work()
    assert [(c.done, c.total, c.over) for c in told] == [(k, 4, False) for k in (1, 2, 3, 4)] + [(4, 4, True)]
    inner = type(told)()
    with reporting_to(inner):
        work()
    assert len(inner) == len(told) == 5


def test_the_end_is_told_of_what_was_broken_off(told):
    with pytest.raises(KeyboardInterrupt):
        work(fault=2)
    assert [c.done for c in told] == [1, 2, 2] and told[-1].over


def test_words_and_facts():
    count = Count("Decoding pictures", 1200, 5000, 60.0)
    assert count.rate == 20 and count.eta == 190
    assert str(count) == "Decoding pictures: 1,200 of 5,000  20/s  eta 3:10"
    assert str(Count("Walking archives, members", 1200, None, 60.0)) == "Walking archives, members: 1,200  20/s"
    assert str(Count("Decoding pictures", 5000, 5000, 250.0, over=True)) == "Decoding pictures: 5,000 of 5,000  20/s"
    assert count.to_dict() == {
        "what": "Decoding pictures", "done": 1200, "total": 5000, "seconds": 60.0, "rate": 20.0, "eta": 190.0,
        "over": False,
    }  # fmt: skip
    assert Count("Reading rows", 0, 5, 0.0).eta is None and progress.clock(3723.4) == "1:02:03"


def test_a_listener_says_how_often_it_is_told(monkeypatch, told):
    """The first after two seconds, one every ten, the last."""
    now = iter([100.0, 101.0, 103.0, 104.0, 113.0, 114.0])
    monkeypatch.setattr(progress, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    told.every = CountBar(io.StringIO()).every
    work()
    found = [(count.done, count.seconds, count.over) for count in told]
    assert found == [(2, 3.0, False), (4, 13.0, False), (4, 14.0, True)]


def test_lines_where_nobody_watches(told):
    stream = io.StringIO()
    with reporting_to(CountBar(stream)):
        work()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and lines[0].startswith("Decoding pictures: 1 of 4  ") and "eta 0:00" in lines[0]
    assert lines[1].startswith("Decoding pictures: 4 of 4  ")


@pytest.mark.parametrize("total", [4, None])
def test_a_bar_on_a_terminal_that_goes(told, monkeypatch, total):
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    stream = Terminal()
    with reporting_to(CountBar(stream)):
        work(total)
    *drawn, last = stream.getvalue().split("\r")[:-1]
    assert any("Decoding pictures: 3" in line for line in drawn) and any("75%" in line for line in drawn) == bool(total)
    assert "\n" not in stream.getvalue() and not last.strip()
