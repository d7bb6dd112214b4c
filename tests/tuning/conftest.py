"""What the tests of tuning share."""

import pytest


@pytest.fixture
def coarse(monkeypatch):
    """A fine solve of few steps (16 a call are the least), where its accuracy does not matter."""
    monkeypatch.setattr("sfumato.tuning.search._FINE", 32)
