"""Commands to a run in progress, as files in its folder: RUN/control/WORD is carried out between two steps and then
deleted.

save     write a checkpoint and the model
sample   draw a grid of samples
pause    wait until the file is deleted (`go`); the time does not count
stop     save and end, as on Ctrl-C
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sfumato.errors import SfumatoError, suggest
from sfumato.files import no_links, reason, remove
from sfumato.folder import existing

WORDS = ("save", "sample", "pause", "go", "stop")
FOLDER = "control"
_LOOK_SECONDS = 0.5  # between two checks of the folder


def say(run: str | os.PathLike[str], word: str) -> Path:
    """Leave a command for a run; a process that trains it will carry it out. `go` ends `pause`."""
    if word not in WORDS:
        raise SfumatoError(f"There is no command {word!r} for a run: {suggest(word, WORDS)}")
    path = existing(run)
    try:
        if word == "go":
            (path / FOLDER / "pause").unlink(missing_ok=True)
            return path
        (path / FOLDER).mkdir(exist_ok=True)
        os.close(no_links(str(path / FOLDER / word), os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        raise SfumatoError(f"{path / FOLDER} cannot be written: {reason(error)}.") from None
    return path


class Commands:
    """Checks a run folder for commands, at most every half second.

    leads: whether this process deletes commands left over from an earlier one.
    """

    def __init__(self, run: Path, leads: bool = True) -> None:
        self.folder, self._next = run / FOLDER, 0.0
        for word in WORDS if leads else ():
            self._take(word)

    def words(self) -> list[str]:
        """The commands in the folder, `pause` last; all but `pause` are deleted."""
        if time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + _LOOK_SECONDS
        found: list[str] = [word for word in ("save", "sample", "stop", "pause") if (self.folder / word).is_file()]
        for word in found:
            if word != "pause":
                self._take(word)
        return found

    def _take(self, word: str) -> None:
        """Delete a command; what is there and no file of ours, such as a folder, is left and never obeyed."""
        if (self.folder / word).is_file():
            remove(self.folder / word)

    def wait(self) -> float:
        """Wait until `pause` is deleted or `stop` appears; returns the seconds waited."""
        start = time.monotonic()
        while (self.folder / "pause").is_file() and not (self.folder / "stop").is_file():
            time.sleep(_LOOK_SECONDS / 2)
        self._next = 0.0
        return time.monotonic() - start
