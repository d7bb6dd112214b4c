"""`doctor`: find faults in a run or a model, or print the page that explains a code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.cli.run import Voice
from sfumato.errors import SfumatoError, suggest

WELL, ILL = 0, 1
PACKAGE = Path(__file__).parents[1]


def doctor(options: Any, voice: Voice) -> int:
    """Examine a run or a model; returns the exit status, 1 if there is an error."""
    if options.explain is not None:
        text = page(options.explain)
        voice.emit({"code": options.explain, "page": text})
        voice.say(*text.rstrip().split("\n"))
        return WELL
    if options.subject is None:
        raise SfumatoError("`sfumato doctor` needs RUN, a run folder or a model file, or --explain CODE")
    from sfumato import diagnosis  # imports torch, which a page does not need
    from sfumato.cli.look import opened
    from sfumato.machine import device_of

    given = None if options.data is None else opened(options)
    report = diagnosis.doctor(options.subject, given, seed=options.seed, device=device_of(options.device))
    voice.emit(report.to_dict())
    voice.say(*str(report).split("\n"))
    return ILL if report.errors else WELL


def page(code: str) -> str:
    """The page on a fault, in Markdown: how it is detected, its causes and its cure."""
    shipped, checkout = PACKAGE / "faults", PACKAGE.parents[1] / "docs/faults"
    folder = shipped if shipped.is_dir() else checkout
    codes = sorted(path.stem for path in folder.glob("[a-z]*.md"))
    if code not in codes:
        raise SfumatoError(f"There is no fault with the code {code!r}: {suggest(code, codes)}")
    return (folder / f"{code}.md").read_text(encoding="utf-8")
