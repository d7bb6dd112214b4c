"""Run one command: parse its options, load its module, and print its output."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TextIO

from sfumato.cli.parse import parse
from sfumato.errors import SfumatoWarning, shown
from sfumato.progress import CountBar, reporting_to

_HOME = {
    "demo": "train", "train": "train", "resume": "resume", "sample": "sample", "info": "look", "inspect": "look",
    "certify": "certify", "tune": "tune", "likelihood": "likelihood", "average": "average", "runs": "runs",
    "control": "train", "plan": "plan", "distill": "distill", "align": "align",
    "explain-objective": "explain", "explain-guidance": "guidance",
    "evaluate": "evaluate", "memorization": "memorization", "doctor": "doctor",
    "impute": "table", "merge": "merge",
    "audit": "audit", "views": "audit",
    "translate": "translate",
}  # fmt: skip


class Voice:
    """The output of a command: results on stdout, notes on stderr; with --json only JSON on stdout."""

    def __init__(self, as_json: bool) -> None:
        self.json = as_json
        self.mute = os.environ.get("RANK", "0") != "0"  # only torchrun's first process prints
        self.count = None if self.mute else CountBar(sys.stderr)

    @property
    def stream(self) -> TextIO:
        """The stream for text."""
        return sys.stderr if self.json else sys.stdout

    def say(self, *lines: str) -> None:
        """Print results as text; each argument is one line."""
        for line in () if self.mute else lines:
            print(shown(line), file=self.stream, flush=True)

    def note(self, line: str) -> None:
        """Print a note on stderr."""
        if not self.mute:
            print(shown(line), file=sys.stderr, flush=True)

    def emit(self, facts: dict[str, Any]) -> None:
        """Print facts as one line of JSON if --json is set."""
        if self.json and not self.mute:
            print(json.dumps(facts, allow_nan=False, default=str), flush=True)


def run(command: str, words: Sequence[str], as_json: bool) -> int:
    """Parse and run a command; returns the exit status."""
    try:
        options = parse(command, words)
    except SystemExit:  # --help
        return 0
    module, voice = import_module(f"sfumato.cli.{_HOME[command]}"), Voice(as_json)
    with reporting_to(voice.count), _warned(voice):
        # only `certify` and `doctor` have a status of their own
        return getattr(module, command.replace("-", "_"))(options, voice) or 0


@contextmanager
def _warned(voice: Voice) -> Iterator[None]:
    """Print this package's warnings as notes, once each; other warnings in Python's form."""
    said: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", SfumatoWarning)

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, SfumatoWarning):
                usual(shown(str(message)), category, *where)
            elif str(message) not in said:
                said.add(str(message))
                voice.note(str(message))

        warnings.showwarning = show  # type: ignore[assignment]
        yield
