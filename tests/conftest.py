"""What every test stands on: two threads, the figure that the time limits were chosen for, and no chance."""

import os
import signal

import pytest
from hypothesis import settings

from sfumato import progress

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is imported, which reads it once
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what stands in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("sfumato", deadline=None, derandomize=True)
settings.load_profile("sfumato")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test that is marked first(n), the cases after the first n are slow."""
    seen = {}
    for item in items:
        for mark in item.iter_markers("first"):
            name = item.nodeid.partition("[")[0]
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """What draws without a generator draws the same whichever tests came before, also for fixtures of a module."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Nothing is left in the cache of whoever runs the tests, and nothing of it is found."""
    monkeypatch.setenv("SFUMATO_CACHE", "off")


@pytest.fixture(autouse=True)
def no_files_of_others(monkeypatch):
    """Messages name the files of classes (--modules) that this test read, and none that another one read."""
    from sfumato import registry

    monkeypatch.setattr(registry, "FILES", [])


class Counts(list[progress.Count]):
    """A listener that keeps every count."""

    every = 0.0

    def __call__(self, count: progress.Count) -> None:
        self.append(count)


@pytest.fixture
def told(monkeypatch):
    """All that is told of counted work, of which nothing stays silent."""
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    found = Counts()
    with progress.reporting_to(found):
        yield found


@pytest.fixture
def registered(monkeypatch):
    """What a test registers, in the place of something of the same name too, goes again."""
    from sfumato import registry

    tables = [(kind, known, dict(known)) for table in (registry._MADE, registry._OWN) for kind, known in table.items()]
    yield
    for kind, known, before in tables:
        for name in list(known):
            if name in before:
                known[name] = before[name]
            elif not registry.ships(kind, name):
                del known[name]
