"""Checks of the log of a run: the learning rate, losses against the linear guess, skipped steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_high
from typing import Any

from sfumato.diagnostics.checks.evidence import Evidence
from sfumato.diagnostics.checks.finding import ERROR, WARNING, Finding
from sfumato.errors import counted

WHOLE = 0.75  # of the initial weights' length, from which on a step is too long
BURST, WINDOWS = 3.0, 10  # a loss of three times the first ones, as the median over a tenth of the log
SHORT = 0.2  # step over weights below which a burst has another cause
MOVED = 0.01  # of the loss on the same held-out draws: that of a network that learns changes more
STILL = 0.97  # of the first loss, above which a run has not learned
PATIENCE = 100  # steps before which that is not judged


def _losses(log: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log if line.get("loss") is not None]


def lr_high(evidence: Evidence) -> Finding | None:
    """A step of 3/4 of the length of the initial hidden weights or more; or a tenth of the log whose median loss is 3
    times the first ones, unless steps are known to be short.
    """
    settings, weights, ratio = evidence.settings, evidence.weights, None
    if settings and weights is not None and weights.initial is not None:
        ratio = step_length(settings, weights.initial)
    if ratio is not None and ratio >= WHOLE:
        assert settings is not None
        return _too_high(
            f"at its highest rate one step is {ratio:.3g} times as long as the weights that it starts from",
            {"step over weights": ratio, "lr": settings["lr"], "optimizer": settings["optimizer"]}, settings,
        )  # fmt: skip
    return None if ratio is not None and ratio < SHORT else _burst(evidence)


def _burst(evidence: Evidence) -> Finding | None:
    losses = _losses(evidence.log or [])
    size = len(losses) // WINDOWS
    if size < 3 or min(loss for _, loss in losses) <= 0:  # of a loss that can be 0 or less no ratio says anything
        return None
    parts = [sorted(losses[i : i + size], key=lambda each: each[1]) for i in range(0, len(losses) - size + 1, size)]
    first = max(losses[0][1], parts[0][size // 2][1])
    step, most = max((part[size // 2] for part in parts), key=lambda each: each[1])
    if not most > BURST * first:
        return None
    return _too_high(
        f"the loss rose to {most:.3g} at step {step:,}, {most / first:.2g} times what it was at first",
        {"first loss": first, "largest median": most}, evidence.settings,
    )  # fmt: skip


def _too_high(what: str, numbers: dict[str, Any], settings: dict[str, Any] | None) -> Finding:
    usual = {"muon": 4e-3, "adamw": 2e-3}.get((settings or {}).get("optimizer", ""), None)
    cure = "Train anew with a lower rate" + (f": --lr {usual:g} is usual." if usual else ", a tenth of it at first.")
    return Finding("lr-high", what, numbers, cure)


def step_length(settings: dict[str, Any], initial: dict[str, Any]) -> float | None:
    """|step| / |W| over the hidden matrices that are not zero at first: lr 0.2 sqrt(n) for Muon, lr sqrt(n) for Adam,
    n the numbers in them, since both take steps of a length that the gradient has no part in."""
    hidden = [w for w in initial.values() if w.ndim >= 2 and min(w.shape[0], w[0].numel()) >= 16 and bool(w.any())]
    if not hidden:
        return None
    length = math.sqrt(sum(float(w.double().square().sum()) for w in hidden) / sum(w.numel() for w in hidden))
    return float(settings["lr"]) * (0.2 if settings["optimizer"] == "muon" else 1.0) / length


def lr_low(evidence: Evidence) -> Finding | None:
    """After 100 steps and half of the budget the loss is above 0.97 of what it was, and above the guess's; and that of
    the held-out triples, which are the same each time, has moved by less than a hundredth since it was first taken."""
    log = evidence.log or []
    losses, judged = _losses(log), [line for line in log if "valid_trivial" in line]
    if len(losses) < 8 or losses[-1][0] < PATIENCE or log[-1].get("fraction", 1.0) < 0.5 or len(judged) < 2:
        return None
    guess, scored = judged[-1]["valid_trivial"], judged[-1]["valid_raw"]
    first = median_high(loss for _, loss in losses[: max(1, min(5, len(losses) // 20))])
    last = median_high(loss for _, loss in losses[-max(3, len(losses) // 10) :])
    if last < STILL * first or min(last, scored) < 1.02 * guess:
        return None
    if abs(scored - judged[0]["valid_raw"]) > MOVED * scored:
        return None
    return Finding(
        "lr-low",
        f"the loss on the same held-out draws was {judged[0]['valid_raw']:.4g} at step {judged[0]['step']:,} and is "
        f"{scored:.4g} at step {judged[-1]['step']:,}; the linear guess has {guess:.4g}",
        {"first loss": first, "last loss": last, "held out": scored, "guess": guess,
         "lr": (evidence.settings or {}).get("lr")},
        "Raise the learning rate, and check that the optimiser takes steps.",
    )  # fmt: skip


def not_finite(evidence: Evidence) -> Finding | None:
    """Steps in incident.json: an error where the run went back, a warning where it went on."""
    incidents = evidence.incidents
    if not incidents:
        return None
    back = sum(each.get("rolled_back") is not None for each in incidents)
    last = incidents[-1]
    return Finding(
        "not-finite",
        f"{counted(len(incidents), 'step was', 'steps were')} skipped, the last one, {last['step']:,}, since "
        f"{last['where']}",
        {"skipped": len(incidents), "went back": back, "last rate": last["lr"]},
        "Look at the rows in incident.json; a lower --lr or --precision float32 help where it is not the data.",
        ERROR if back else WARNING,
    )
