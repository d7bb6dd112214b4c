"""The report of an examination: findings by code, the checks that were made, and those that could not be."""

from __future__ import annotations

import dataclasses
from typing import Any, final

ERROR, WARNING = "error", "warning"

# code -> what it stands for; each has a page, docs/faults/CODE.md
CODES = {
    "range": "the data are not in the units that the model knows",
    "double-normalised": "the data were normalised twice",
    "mixed-units": "some samples are in other units than the rest",
    "identical": "the samples are copies of one another",
    "constant": "a column or channel never changes",
    "axes": "the axes of the data are in the wrong order",
    "labels-shuffled": "the labels do not belong to the samples",
    "lr-high": "the learning rate is too high",
    "lr-low": "the loss has hardly moved",
    "ema-stale": "the moving average still holds the start of the run",
    "frozen": "parameters never learned anything",
    "weights-not-finite": "weights are NaN or infinite",
    "half-overflow": "half precision overflows",
    "not-finite": "steps were skipped because something was not finite",
    "sign-flipped": "the network predicts the negative of its target",
    "schedule": "the model declares another schedule than the network learned",
    "target": "the model declares another target than the network learned",
    "condition-dead": "the network ignores a condition",
    "condition-uninformative": "a condition carries no information about the samples",
    "level-dead": "the network ignores the noise level",
    "map-collapsed": "a flow map leads from pure noise to a mean",
    "until-dead": "a flow map ignores the end of a path",
    "half-derivative": "half precision leaves nothing of a derivative",
    "distance-rising": "a student moves away from its teacher",
    "clipped": "predictions are clipped inside the range of the data",
    "worse-than-guess": "the model is worse than the linear guess",
}


@final
@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault. what: a sentence that names it; evidence: the numbers behind it; cure: what to do."""

    code: str
    what: str
    evidence: dict[str, Any]
    cure: str
    severity: str = ERROR
    step: int | None = None

    @property
    def page(self) -> str:
        """Where the documentation explains the code."""
        return f"docs/faults/{self.code}.md"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "page": self.page}

    @classmethod
    def from_dict(cls, made: dict[str, Any]) -> Finding:
        return cls(**{field.name: made[field.name] for field in dataclasses.fields(cls)})

    def __str__(self) -> str:
        when = "" if self.step is None else f" (seen at step {self.step:,})"
        numbers = ", ".join(f"{name} {_shown(value)}" for name, value in self.evidence.items())
        return f"{self.severity} {self.code}: {self.what}{when}.\n    {numbers}\n    {self.cure} See {self.page}."


@final
@dataclasses.dataclass(frozen=True)
class Report:
    """findings: errors first; checked: codes that were looked for; unchecked: code -> why it could not be."""

    subject: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    unchecked: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def codes(self) -> set[str]:
        """The codes found."""
        return {finding.code for finding in self.findings}

    @property
    def healthy(self) -> bool:
        """Whether something was looked at, and nothing found, not even a warning."""
        return not self.findings and bool(self.checked)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == ERROR)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = [finding.to_dict() for finding in self.findings]
        return {
            "subject": self.subject, "healthy": self.healthy, "findings": found, "checked": list(self.checked),
            "unchecked": self.unchecked, "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.subject}: {_headline(self)}.", *(f"  {finding}" for finding in self.findings)]
        lines.append(f"Looked for: {', '.join(self.checked) or 'nothing'}.")
        reasons: dict[str, list[str]] = {}
        for code, reason in self.unchecked.items():
            reasons.setdefault(reason, []).append(code)
        lines += [f"Not looked for, {reason}: {', '.join(codes)}." for reason, codes in reasons.items()]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def _headline(report: Report) -> str:
    """What was found, and how much was looked at."""
    errors, looked, left = len(report.errors), len(report.checked), len(report.unchecked)
    counts = ((errors, "error"), (len(report.findings) - errors, "warning"))
    found = ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n)
    if not looked:
        return found or "nothing was looked at"
    made = f"{looked} of {looked + left} checks could be made" if left else f"all {looked} checks were made"
    return f"{found or 'nothing found'} ({made})"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_shown, value)) + "]"
    return str(value)
