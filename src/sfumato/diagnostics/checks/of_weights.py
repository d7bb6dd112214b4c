"""Faults that the weights show: what never moved, and an average that has not forgotten the start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.diagnostics.checks.evidence import Evidence, Weights
from sfumato.diagnostics.checks.finding import WARNING, Finding
from sfumato.diagnostics.checks.of_log import stale_by_loss

SOME = 20  # steps before which nothing is said
START = 0.6  # weight of the start in an average: that of the uniform one, the widest there is, is a half
PARALLEL = 1e-9  # 1 - cos between a tensor and its start: decay alone shortens it, and turns nothing
SHORTENED = 2**-24  # of its length: half of float32's spacing, below which decay changes no number at all
ENOUGH = 8  # numbers in a tensor from which on its direction says something


def not_finite(evidence: Evidence) -> Finding | None:
    """Weights that are NaN or infinite."""
    if not evidence.broken:
        return None
    names = list(evidence.broken)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Finding(
        "weights-not-finite",
        f"{sum(evidence.broken.values()):,} values of {listed} are NaN or infinite",
        {"values": sum(evidence.broken.values()), "tensors": len(names)},
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


def _is_label(name: str) -> bool:
    return ".label." in f".{name}"


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
        "error" if count > 0.01 * total else WARNING,
    )


def dead_label(weights: Weights | None) -> str | None:
    """The name of an embedding of a condition that never learned, where other parameters did."""
    if weights is None:
        return None
    names = unmoved(weights)
    label = next((name for name in names if _embeds(name)), None)
    return label if len(names) < len(weights.now) / 2 else None


def rows_unlearned(weights: Weights) -> bool:
    """Whether in a label embedding only the row of no label has learned."""
    for name, now in weights.now.items():
        if _is_label(name) and weights.initial is not None and name in weights.initial and weights.steps >= SOME:
            start = weights.initial[name]
            still = [_still(a, b) for a, b in zip(start[1:], now[1:], strict=True)]
            if still and all(still):
                return True
    return False


def ema_stale(evidence: Evidence) -> Finding | None:
    """<ema - theta, theta_0 - theta> / |theta_0 - theta|^2 above 0.6, or an average worse than the guess beside raw
    weights that are better."""
    weights, by_loss = evidence.weights, stale_by_loss(evidence.log or [])
    share = None if weights is None else _share_of_start(weights)
    if not (share is not None and share > START) and by_loss is None:
        return None
    numbers = dict(by_loss or {}) | ({} if share is None else {"weight of the start": share})
    what = (
        f"the start of the run makes up {share:.0%} of the moving average"
        if share is not None and share > START
        else f"the moving average loses {numbers['average']:.3g}, the raw weights {numbers['raw']:.3g} and a guess "
        f"{numbers['guess']:.3g}"
    )
    return Finding(
        "ema-stale",
        what,
        numbers,
        "Take an average whose window is a fraction of the run (--ema 0.06), or the raw weights (--weights raw).",
    )


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
