"""Checks of flow maps: samples that collapse to a mean, a second time that is not heard, or too coarsely for a
derivative, a student that drifts away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sfumato.diagnostics.answers import DEAD
from sfumato.diagnostics.checks.evidence import Evidence
from sfumato.diagnostics.checks.finding import Finding

COLLAPSED = 0.4  # of the data's deviation: students of few calls keep 0.8 or more
LOST = 0.1  # of the answers: in float32 two widths of a difference agree to 1e-3, in bfloat16 they do not at all
DERIVED = ("lagrangian", "mean-flow")  # in the names of losses that take derivatives
RISES, FAR = 3, 2.0  # evaluations in a row, and how far above its lowest a distance has then come


def map_collapsed(evidence: Evidence) -> Finding | None:
    """Samples of one call spread less than 0.4 of what the data do."""
    paths = evidence.paths
    if paths is None or paths.spread >= COLLAPSED:
        return None
    return Finding(
        "map-collapsed",
        f"samples of one call spread {paths.spread:.2g} of what the data do: from pure noise the map leads to a mean",
        {"spread": paths.spread, "least": COLLAPSED},
        "Compare a map with itself or with a teacher's solutions, never X(z, t, 0) with the sample behind z.",
    )


def until_dead(evidence: Evidence) -> Finding | None:
    """Another end of the paths changes nothing in the answers."""
    paths = evidence.paths
    if paths is None or paths.response >= DEAD:
        return None
    return Finding(
        "until-dead",
        "another end of a path changes nothing in the network's answers: it does not hear its second time",
        {"response": paths.response},
        "Check that the network uses the keyword until, one number a sample, and that it reaches the network.",
    )


def half_derivative(evidence: Evidence) -> Finding | None:
    """Two widths of a difference in the path's end disagree, where the loss, if it is known, takes derivatives."""
    paths, loss = evidence.paths, str((evidence.settings or {}).get("loss", DERIVED[0]))
    if paths is None or paths.unsteady < LOST or not any(name in loss for name in DERIVED):
        return None
    return Finding(
        "half-derivative",
        f"a derivative in the end of a path changes with its width by {paths.unsteady:.2g} of the answers: the network "
        "computes too coarsely for it",
        {"unsteady": paths.unsteady, "most": LOST},
        "Keep the weights, and what the network casts by itself, in float32, or train without derivatives: semigroup.",
    )


def distance_rising(evidence: Evidence) -> Finding | None:
    """The held-out distance to the teacher's samples rose three times in a row, to twice its lowest."""
    if "teacher=" not in str((evidence.settings or {}).get("loss")):
        return None
    found = [line.get("valid_ema", line.get("valid_raw")) for line in evidence.log or []]
    known = [value for value in found if value is not None]
    if not rising(known):
        return None
    return Finding(
        "distance-rising",
        f"the distance to the teacher's samples was {min(known):.3g} and is {known[-1]:.3g}",
        {"lowest": min(known), "last": known[-1]},
        "Train with a lower --lr, or with a loss whose targets are the teacher's own, such as trajectory-consistency.",
    )


def rising(found: Sequence[float]) -> bool:
    """Whether the last RISES values each rose, to FAR times the lowest."""
    last = found[-1 - RISES :]
    rose = len(last) > RISES and all(before < after for before, after in pairwise(last))
    return rose and last[-1] > FAR * min(found)
