"""`certify`: one solver or all of them, measured on exact models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato import certification, solvers
from sfumato.cli.run import Voice
from sfumato.errors import SfumatoError, suggest
from sfumato.registry import bare, make, names
from sfumato.solvers import Plan

PASSED, FAILED = 0, 1


def certify(options: Any, voice: Voice) -> int:
    """Certify solvers; returns the exit status, 0 if everything passed, else 1."""
    if options.solver is None:
        return _all(voice, quick=not options.full)
    found = certification.certify(_subject(options.solver), name=options.solver, quick=options.quick)
    voice.emit(found.to_dict())
    voice.say(*str(found).split("\n"))
    return PASSED if found.passed else FAILED


def _subject(word: str) -> Any:
    if bare(word) in names("solver"):
        return make("solver", word)
    if word.endswith(".json") or Path(word).is_file():
        return Plan.load(word)
    raise SfumatoError(f"there is no solver or plan file {word!r}: {suggest(word, names('solver'))}")


def _all(voice: Voice, quick: bool) -> int:
    found = {}
    for name, maker in solvers.NAMES.items():
        # no order in the number of steps; a learned variance, which exact models lack; for symbols alone
        if isinstance(solver := maker(), solvers.Adaptive | solvers.LearnedDDPM | solvers.SymbolSolver):
            continue
        voice.note(f"{name} ...")
        found[name] = certification.certify(solver, name=name, quick=quick)
    voice.emit({"passed": all(one.passed for one in found.values()), "solvers": _plain(found)})
    voice.say(*certification.summary(found).split("\n"))
    return PASSED if all(one.passed for one in found.values()) else FAILED


def _plain(found: dict[str, certification.Certificate]) -> dict[str, Any]:
    return {name: one.to_dict() for name, one in found.items()}
