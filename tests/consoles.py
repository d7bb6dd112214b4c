"""Consoles for tests."""

from sfumato.training.console import Silent
from sfumato.training.loop import Progress


class Heard(Silent):
    """Keeps what is said, and stops the run after a step as Ctrl-C does."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.said: list[str] = []
        self.stop = stop

    def note(self, text: str) -> None:
        self.said.append(text)

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.stop:
            raise KeyboardInterrupt
