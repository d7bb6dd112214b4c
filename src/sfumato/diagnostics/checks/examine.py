"""All checks over one body of evidence, in one table: causes stand before what they explain.

A check of the user's is a registered function that returns a `Check`, @register("check", code): it is made after these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import final

from sfumato.diagnostics.checks import of_answers, of_data, of_log, of_paths, of_weights
from sfumato.diagnostics.checks.evidence import Evidence
from sfumato.diagnostics.checks.finding import ERROR, Finding, Report
from sfumato.registry import Named

Rule = Callable[[Evidence], Finding | None]


@final
@dataclasses.dataclass(frozen=True)
class Check:
    """A rule for one code, a pure function of the evidence.

    needs: parts of the evidence, any one of which suffices. explains: codes that are mere consequences of this one and
    are not reported beside it. passes: whether further training may cure the fault, so that a finding recorded during
    the run is dropped when the check, made again, finds nothing. of_maps: whether it is about flow maps alone, and not
    named among the checks that could not be made of other models.
    """

    code: str
    needs: tuple[str, ...]
    rule: Rule
    explains: frozenset[str] = frozenset()
    passes: bool = False
    of_maps: bool = False


_MEANING = frozenset(
    {"sign-flipped", "schedule", "target", "worse-than-guess", "clipped", "labels-shuffled", "condition-uninformative"}
)
_DEAF = frozenset({"condition-dead", "level-dead"})
_ABOUT_LABELS = frozenset({"labels-shuffled", "condition-uninformative"})
_LEARNING = _MEANING | {"lr-high", "lr-low", "ema-stale", "not-finite"}

CHECKS: tuple[Check, ...] = (
    Check("weights-not-finite", ("not_finite",), of_weights.not_finite, _LEARNING | _DEAF),
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
    Check("map-collapsed", ("paths",), of_paths.map_collapsed, _MEANING | _DEAF | {"until-dead"}, of_maps=True),
    Check("until-dead", ("paths",), of_paths.until_dead, _MEANING, of_maps=True),
    Check("half-derivative", ("paths",), of_paths.half_derivative, _MEANING, of_maps=True),
    Check("distance-rising", ("log",), of_paths.distance_rising, _MEANING | {"ema-stale"}),
    Check("level-dead", ("answers",), of_answers.level_dead, _MEANING),
    Check("sign-flipped", ("answers",), of_answers.misread, _ABOUT_LABELS | {"clipped"}),
    Check("schedule", ("answers",), of_answers.misread, _ABOUT_LABELS | {"clipped"}),
    Check("target", ("answers",), of_answers.misread, _ABOUT_LABELS | {"clipped"}),
    Check("condition-dead", ("answers", "weights", "unheard"), of_answers.condition_dead, _ABOUT_LABELS),
    Check("condition-uninformative", ("answers", "information"), of_answers.condition_uninformative, passes=True),
    Check("labels-shuffled", ("answers", "sample"), of_answers.labels_shuffled, passes=True),
    Check("clipped", ("answers",), of_answers.clipped, frozenset({"worse-than-guess"})),
    Check("not-finite", ("incidents",), of_log.not_finite),
    Check("worse-than-guess", ("answers",), of_answers.worse_than_guess, passes=True),
)


def examine(evidence: Evidence, subject: str = "the model", notes: tuple[str, ...] = ()) -> Report:
    """Make every check that the evidence allows; what the run recorded itself counts as found."""
    checks = (*CHECKS, *(make() for make in Named("check").values()))
    checked, unchecked = [], {}
    found = {finding.code: finding for finding in evidence.recorded}
    for check in checks:
        if all(getattr(evidence, part) is None for part in check.needs):
            if not check.of_maps:
                unchecked[check.code] = evidence.absent.get(check.needs[0], f"without {check.needs[0]}")
            continue
        checked.append(check.code)
        finding = check.rule(evidence)
        if finding is not None:
            found[finding.code] = finding
        elif check.passes:
            found.pop(check.code, None)
    explained: set[str] = set()
    for check in checks:
        if check.code in found and check.code not in explained and found[check.code].severity == ERROR:
            explained |= check.explains - {check.code}
    kept = [finding for code, finding in found.items() if code not in explained]
    kept.sort(key=lambda finding: finding.severity != ERROR)
    return Report(subject, tuple(kept), tuple(checked), unchecked, notes)
