"""The result of `certify`: measurements for each schedule, faults in words, and a table."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sfumato.certification.law import Bias, Marginal
from sfumato.errors import counted


@dataclasses.dataclass(frozen=True)
class Findings:
    """The measurements on one schedule.

    order: the measured order, for a stochastic solver that of the bias of mean and variance; None if it cannot be
    measured (a single plan, or errors at rounding level). errors: the data of the fit, (steps, error). start_order: of
    the first steps alone. calls: as a formula in the number of steps K; unused: calls whose result changes nothing.
    first_call, t_start: time of the first call, and the time it should have. joins: distance of states from their
    level for data in one point, in units of sigma, at two numbers of steps. bounded_from: the number of steps from
    which runs on a stiff Gaussian stay bounded. whole: (steps, distance to the exact map from noise to data).
    reference: the same distance for DDIM on the calls of a plan. bias: at `bias_steps`, from noise to data. marginal:
    law of the samples of a mixture. faults: everything wrong, in words.
    """

    schedule: str
    order: float | None
    errors: tuple[tuple[int, float], ...]
    settled: bool
    start_order: float | None
    calls: str
    counted: tuple[tuple[int, int], ...]
    unused: tuple[int, ...]
    first_call: float
    t_start: float
    joins: tuple[float, float]
    bounded_from: int | None
    same: bool
    random: bool
    whole: tuple[int, float] | None = None
    reference: float | None = None
    bias: Bias | None = None
    bias_steps: int | None = None
    marginal: Marginal | None = None
    faults: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A solver's measurements on every schedule. `str()` prints a table; `passed` is True if there are no faults."""

    name: str
    declared: int | None
    stochastic: bool
    findings: tuple[Findings, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def faults(self) -> tuple[str, ...]:
        """All faults, one sentence each, prefixed with the schedule."""
        return tuple(f"{one.schedule}: {fault}" for one in self.findings for fault in one.faults)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, including `passed`."""
        return {**_finite(dataclasses.asdict(self)), "passed": self.passed}

    def __str__(self) -> str:
        kind = "stochastic" if self.stochastic else "deterministic"
        order = "no declared order" if self.declared is None else f"order {self.declared}"
        verdict = "passed" if self.passed else "FAILED"
        rows = [HEAD, *([one.schedule, *cells(one)] for one in self.findings)]
        lines = [f"{self.name}: {order}, {kind}: {verdict} ({self.seconds:.1f} s)", *table(rows)]
        return "\n".join([*lines, *(f"  ! {fault}" for fault in self.faults)])


def _finite(value: Any) -> Any:
    """A copy with None for infinite and undefined numbers, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


HEAD = ["", "order", "start", "calls", "joins to", "bounded from", "repeats", "law / floor", "whole run",
        "mean, variance"]  # fmt: skip
SHORT = HEAD[1:8]  # of the summary


def cells(one: Findings) -> list[str]:
    """The measurements on one schedule, in the columns of HEAD."""
    return [
        "-" if one.order is None else f"{one.order:.2f}",
        "-" if one.start_order is None else f"{one.start_order:.2f}",
        one.calls,
        f"{one.joins[1]:.0e}",
        "never" if one.bounded_from is None else counted(one.bounded_from, "step"),
        "yes" if one.same else "NO",
        "-" if one.marginal is None else f"{one.marginal.distance:.3f} / {one.marginal.floor:.3f}",
        "-" if one.whole is None else f"{one.whole[1]:.2g} in {one.whole[0]}",
        "-" if one.bias is None else f"{one.bias.mean:+.1e}, {one.bias.variance:+.1e} in {one.bias_steps}",
    ]


def table(rows: list[list[str]]) -> list[str]:
    """Rows as aligned columns; empty columns are left out."""
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] != "-" for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in kept]
    return ["  ".join(row[i].ljust(w) for i, w in zip(kept, widths, strict=True)).rstrip() for row in rows]


def summary(found: dict[str, Certificate]) -> str:
    """One line per solver: each measurement on its schedules in turn, or once if all agree."""
    schedules = [part.schedule for one in found.values() for part in one.findings]
    rows = [["solver", "declared", *SHORT, f"on {', '.join(dict.fromkeys(schedules))}"]]
    for name, one in found.items():
        columns = list(zip(*map(cells, one.findings), strict=True))[: len(SHORT)]
        figures = [column[0] if len(set(column)) == 1 else ", ".join(column) for column in columns]
        declared = "-" if one.declared is None else str(one.declared)
        rows.append([name, declared, *figures, "passed" if one.passed else "FAILED"])
    return "\n".join([*table(rows), *(f"  ! {name}, {fault}" for name, one in found.items() for fault in one.faults)])
