"""All checks over one body of evidence; what a fault explains is not said again as another.

A check of the user's is a registered function that gives a `Check`, @register("check", code): it is made after these.
"""

from __future__ import annotations

from sfumato.diagnostics.checks import of_answers, of_data, of_log, of_weights
from sfumato.diagnostics.checks.check import Check
from sfumato.diagnostics.checks.evidence import Evidence
from sfumato.diagnostics.checks.finding import ERROR, Finding, Report
from sfumato.registry import Named

_MEANING = frozenset(
    {"sign-flipped", "schedule", "target", "worse-than-guess", "clipped", "labels-shuffled", "condition-uninformative"}
)
_DEAF = frozenset({"condition-dead", "level-dead"})
_ABOUT_LABELS = frozenset({"labels-shuffled", "condition-uninformative"})
_LEARNING = _MEANING | {"lr-high", "lr-low", "ema-stale", "not-finite"}

CHECKS: tuple[Check, ...] = (
    Check("weights-not-finite", ("broken",), of_weights.not_finite, _LEARNING | _DEAF),
    Check("double-normalised", ("sample",), of_data.double_normalised, _LEARNING | {"range"}),
    Check("range", ("sample", "log"), of_data.out_of_range, _LEARNING | {"mixed-units"}),
    Check("mixed-units", ("sample",), of_data.mixed_units),
    Check("identical", ("sample",), of_data.identical, _LEARNING | {"condition-dead", "axes", "constant"}),
    Check("constant", ("sample",), of_data.constant),
    Check("axes", ("sample",), of_data.axes, frozenset({"constant"})),
    Check("half-overflow", ("answers", "incidents"), of_answers.half_overflow, _LEARNING | _DEAF),
    Check("lr-high", ("log", "weights"), of_log.lr_high, _LEARNING | _DEAF),
    Check("frozen", ("weights",), of_weights.frozen, _LEARNING | _DEAF),
    Check("lr-low", ("log",), of_log.lr_low, _MEANING | _DEAF | {"ema-stale", "frozen"}),
    Check("ema-stale", ("weights", "log"), of_weights.ema_stale, passes=True),
    Check("level-dead", ("answers",), of_answers.level_dead, _MEANING),
    Check("sign-flipped", ("answers",), of_answers.sign_flipped, _ABOUT_LABELS | {"clipped"}),
    Check("schedule", ("answers",), of_answers.schedule, _ABOUT_LABELS | {"clipped"}),
    Check("target", ("answers",), of_answers.wrong_target, _ABOUT_LABELS | {"clipped"}),
    Check("condition-dead", ("answers", "weights", "deaf"), of_answers.condition_dead, _ABOUT_LABELS),
    Check("condition-uninformative", ("answers", "told"), of_answers.condition_uninformative, passes=True),
    Check("labels-shuffled", ("answers", "sample"), of_answers.labels_shuffled, passes=True),
    Check("clipped", ("answers",), of_answers.clipped, frozenset({"worse-than-guess"})),
    Check("not-finite", ("incidents",), of_log.not_finite),
    Check("worse-than-guess", ("answers",), of_answers.worse_than_guess, passes=True),
)


def examine(evidence: Evidence, subject: str = "the model", notes: tuple[str, ...] = ()) -> Report:
    """Make every check that the evidence allows. What was found during training counts as found."""
    checked, unchecked = [], {}
    found: dict[str, Finding] = {finding.code: finding for finding in evidence.recorded}
    checks = (*CHECKS, *(make() for make in Named("check").values()))
    for check in checks:
        reason = check.missing(evidence)
        if reason is not None:
            unchecked[check.code] = reason
            continue
        checked.append(check.code)
        finding = check.find(evidence)
        if finding is not None:
            found[check.code] = finding
        elif check.passes:
            found.pop(check.code, None)
    explained: set[str] = set()
    for check in checks:  # causes stand before what they explain
        if check.code not in explained and _is_error(found.get(check.code)):
            explained |= check.explains - {check.code}
    kept = [finding for code, finding in found.items() if code not in explained]
    kept.sort(key=lambda finding: finding.severity != ERROR)
    return Report(subject, tuple(kept), tuple(checked), unchecked, notes)


def _is_error(finding: Finding | None) -> bool:
    return finding is not None and finding.severity == ERROR
