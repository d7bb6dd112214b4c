"""Words to a run under way, through files in its folder: RUN/control/WORD is done between two steps and taken away.

save     a checkpoint and the model as they are now
sample   a grid of samples
pause    wait, the clock standing, until the file is taken away (`go`)
stop     save and end, as Ctrl-C does
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sfumato.errors import SfumatoError, suggest
from sfumato.files import reason
from sfumato.folder import existing

WORDS = ("save", "sample", "pause", "go", "stop")
FOLDER = "control"
_LOOK_SECONDS = 0.5  # between two looks at the folder


def say(run: str | os.PathLike[str], word: str) -> Path:
    """Leave a word for a run; `go` takes `pause` back. The word is heard by the run's process where there is one."""
    if word not in WORDS:
        raise SfumatoError(f"A run does not know the word {word!r}: {suggest(word, WORDS)}")
    path = existing(run)
    try:
        if word == "go":
            (path / FOLDER / "pause").unlink(missing_ok=True)
            return path
        (path / FOLDER).mkdir(exist_ok=True)
        (path / FOLDER / word).touch()
    except OSError as error:
        raise SfumatoError(f"{path / FOLDER} cannot be written: {reason(error)}.") from None
    return path


class Ear:
    """Looks for words every half second at most, so that a step costs nothing more.

    first: the process that takes away what was said to an earlier one, before this one listens to signals.
    """

    def __init__(self, run: Path, first: bool = True) -> None:
        self.folder, self._next = run / FOLDER, 0.0
        for word in WORDS if first else ():
            (self.folder / word).unlink(missing_ok=True)

    def words(self) -> list[str]:
        """The words that lie there, `pause` last; all but it are taken away."""
        if time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + _LOOK_SECONDS
        try:
            lying = {entry.name for entry in self.folder.iterdir()}
        except FileNotFoundError:
            return []
        found: list[str] = [word for word in ("save", "sample", "stop", "pause") if word in lying]
        for word in found:
            if word != "pause":
                (self.folder / word).unlink(missing_ok=True)
        return found

    def wait(self) -> float:
        """Seconds until `pause` is taken away, or `stop` said."""
        start = time.monotonic()
        while (self.folder / "pause").exists() and not (self.folder / "stop").exists():
            time.sleep(_LOOK_SECONDS / 2)
        self._next = 0.0
        return time.monotonic() - start
