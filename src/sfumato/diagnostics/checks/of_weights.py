"""Checks of the weights: parameters that never moved, and an average that still holds the start of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.diagnostics.checks.evidence import Evidence, Weights
from sfumato.diagnostics.checks.finding import ERROR, WARNING, Finding
from sfumato.diagnostics.checks.of_log import PATIENCE

SOME = 20  # steps before which weights are not judged
START = 0.6  # weight of the start in an average: that of the uniform one, the widest there is, is a half
PARALLEL = 1e-9  # 1 - cos between a tensor and its start: decay alone shortens it, and turns nothing
SHORTENED = 2**-24  # of its length: half of float32's spacing, below which decay changes no number at all
ENOUGH = 8  # numbers in a tensor from which on its direction says something


def not_finite(evidence: Evidence) -> Finding | None:
    """Weights that are NaN or infinite."""
    if not evidence.not_finite:
        return None
    names = list(evidence.not_finite)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Finding(
        "weights-not-finite",
        f"{sum(evidence.not_finite.values()):,} values of {listed} are NaN or infinite",
        {"values": sum(evidence.not_finite.values()), "tensors": len(names)},
        "Take an earlier checkpoint, or train again at a lower rate.",
    )


def unmoved(weights: Weights) -> list[str]:
    """Parameters that are what they were, or shortened by weight decay alone."""
    if weights.initial is None or weights.steps < SOME:
        return []
    return [name for name, now in weights.now.items() if name in weights.initial and _still(weights.initial[name], now)]


def _still(start: Tensor, now: Tensor) -> bool:
    if torch.equal(start, now):
        return True
    a, b = start.double().flatten(), now.double().flatten()
    if a.numel() < ENOUGH or not bool(a.any()) or not bool(b.any()):
        return False
    ratio = float(a @ b / (a @ a))
    # what turned, over the length; float32 rounds each decay by 6e-8 of a number
    turned = float((b - ratio * a).square().sum() / (b @ b))
    return 0 < ratio < 1 - SHORTENED and turned < PARALLEL


def _embeds(name: str) -> bool:
    """Whether a parameter is of what embeds a condition: the table of labels, or another."""
    return any(f".{part}." in f".{name}" for part in ("label", "others", "context"))


def frozen(evidence: Evidence) -> Finding | None:
    """Parameters that are what they were at the start; embeddings of conditions alone are `condition-dead`."""
    weights = evidence.weights
    if weights is None:
        return None
    names = unmoved(weights)
    still = [name for name in names if not _embeds(name)]
    if not still:
        return None
    count, total = sum(weights.now[n].numel() for n in names), sum(p.numel() for p in weights.now.values())
    return Finding(
        "frozen",
        f"{count:,} of {total:,} parameters are what they were before the first step, such as {still[0]}",
        {"share": count / total, "tensors": len(names), "steps": weights.steps},
        "Look for requires_grad_(False), detach() or a part that the optimiser was not given.",
        ERROR if count > 0.01 * total else WARNING,
    )


def unlearned_embedding(weights: Weights) -> str | None:
    """What embeds a condition and never learned, in words, where other parameters did: a parameter, or of the table of
    labels all but the row of no label. What stands for no value learns only where values are missing or dropped, which
    a source never is."""
    still = unmoved(weights)
    name = next((name for name in still if _embeds(name) and not name.endswith(".null")), None)
    if name is not None and len(still) < len(weights.now) / 2:
        return name
    for name, start in (weights.initial or {}).items():
        if ".label." in f".{name}" and name in weights.now and weights.steps >= SOME:
            rows = zip(start[1:], weights.now[name][1:], strict=True)
            if len(start) > 1 and all(_still(a, b) for a, b in rows):
                return "the embedding of every class"
    return None


def ema_stale(evidence: Evidence) -> Finding | None:
    """<ema - theta, theta_0 - theta> / |theta_0 - theta|^2 above 0.6, or an average worse than the guess beside raw
    weights that are better."""
    share = None if evidence.weights is None else _share_of_start(evidence.weights)
    numbers = _stale_by_loss(evidence.log or [])
    if share is not None and share > START:
        what = f"the start of the run makes up {share:.0%} of the moving average"
    elif numbers:
        what = "the moving average loses {average:.3g}, the raw weights {raw:.3g} and the linear guess {guess:.3g}"
        what = what.format(**numbers)
    else:
        return None
    return Finding(
        "ema-stale",
        what,
        numbers | ({} if share is None else {"weight of the start": share}),
        "Take an average whose window is a fraction of the run (--ema 0.06), or the raw weights (--weights raw).",
    )


def _stale_by_loss(log: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures of the last validation, where the average loses more than the guess and the raw weights less."""
    line = next((line for line in reversed(log) if {"valid_ema", "valid_trivial"} <= line.keys()), None)
    if line is None or line["step"] < PATIENCE:
        return {}
    raw, average, guess = line["valid_raw"], line["valid_ema"], line["valid_trivial"]
    stale = raw < 0.98 * guess and average > max(1.05 * guess, 1.2 * raw)
    return {"raw": raw, "average": average, "guess": guess} if stale else {}


def _share_of_start(weights: Weights) -> float | None:
    if weights.initial is None or weights.average is None or weights.steps < SOME:
        return None
    top = bottom = 0.0
    for name, now in weights.now.items():
        if name in weights.initial and name in weights.average:
            back = (weights.initial[name].double() - now.double()).flatten()
            top += float((weights.average[name].double() - now.double()).flatten() @ back)
            bottom += float(back @ back)
    return top / bottom if bottom > 0 and math.isfinite(top / bottom) else None
