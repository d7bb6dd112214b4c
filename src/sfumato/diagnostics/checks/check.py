"""A check: a code, what it needs, and a pure function from the evidence to a finding or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import final

from sfumato.diagnostics.checks.evidence import Evidence
from sfumato.diagnostics.checks.finding import Finding


@final
@dataclasses.dataclass(frozen=True)
class Check:
    """needs: parts of the evidence, any one of which suffices. explains: codes that are a mere consequence of this.

    passes: whether further training may cure it, so that what was recorded on the way counts only where nobody looks
    again.
    """

    code: str
    needs: tuple[str, ...]
    find: Callable[[Evidence], Finding | None]
    explains: frozenset[str] = frozenset()
    passes: bool = False

    def missing(self, evidence: Evidence) -> str | None:
        """Why the check cannot be made, or None where it can."""
        if any(getattr(evidence, part) is not None for part in self.needs):
            return None
        part = self.needs[0]
        return evidence.absent.get(part, f"without {_NAMES[part]}")


_NAMES = {
    "log": "a log", "sample": "data", "weights": "the weights of the start", "answers": "data and a network",
    "incidents": "a run", "told": "data and a network", "deaf": "data and a network", "broken": "a model",
}  # fmt: skip
