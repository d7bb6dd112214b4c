"""`sf.audit`: what a model violates of what holds for every conditional expectation, by noise level."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import serialization
from sfumato.diagnostics import fields
from sfumato.diagnostics.audit_figures import Audit, Finding
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws, Trivial
from sfumato.diagnostics.identities import DEFAULT, IDENTITIES, Identity, Seen
from sfumato.diagnostics.samples import evaluation_set, trivial
from sfumato.errors import SfumatoError, suggest, whole
from sfumato.intervals import Interval, mean
from sfumato.machine import default_cpu, outside_inference
from sfumato.objectives import times as densities
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.process.gaussian import require_numbers
from sfumato.process.paired import require_heard_source

Columns = dict[str, Tensor]


@default_cpu()
@outside_inference
def audit(
    model: Any,
    data: Any,
    *,
    audits: str | Sequence[str] | None = None,
    bins: int | Sequence[float] = 8,
    samples: int = 512,
    times: TimeDensity | str | None = None,
    labels: Any = None,
    conditional: bool | None = None,
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
) -> Audit:
    """How far a model is from E[x|z], by identities that need no true score, on noised samples it has not seen.

    Each number is 0 for an exact model and has a standard error; `print(found)` marks those that lie more than four of
    them off, says what they mean and what to do. model, data, bins, times, labels, conditional, device: as for
    `sf.board`. audits: names (`docs/how-to/audit.md` says what each means), "all", or None for those that cost little:
    slope, orthogonality, gradient, martingale, tweedie, curl, negative. samples: draws per bin; those whose samples are
    in one half fit corrections, the others judge them. The model is not changed. Raises SfumatoError for symbols, for
    names that do not exist, and for data or numbers that cannot be used.
    """
    if isinstance(model, str | os.PathLike):
        model = serialization.load_sampler(model, device=device)
    require_numbers(model, "An audit", "sf.log_prob and sf.metrics.evaluate judge other models")
    require_heard_source(model, "An audit")
    whole("samples, the draws per bin,", samples, 8)
    whole("batch, the draws at once,", batch)
    wanted, notes = _named(audits, model), list[str]()
    made = getattr(model, "provenance", None) or {}
    density = densities.named(times if times is not None else made.get("times") or UniformTime())
    cut = make(bins, density, model.process.schedule)
    found = evaluation_set(model, data, labels, conditional, samples * len(cut), seed, notes)
    if len(found.x) < 8:
        raise SfumatoError(
            f"An audit needs at least 8 samples, half of them to judge what the others fit, not {len(found.x)}."
        )
    draws = Draws(found.x, found.cond, model.process, cut, samples, seed, batch)
    return measured(model, draws, trivial(model, found), wanted, notes)


def _named(audits: str | Sequence[str] | None, model: Any) -> dict[str, Identity]:
    """The identities of these names that can be asked of the model."""
    maps = bool(getattr(model, "two_times", False))
    own = {name: one for name, one in IDENTITIES.items() if maps or name != "semigroup"}
    if audits is None or audits == "all":
        return {name: own[name] for name in (DEFAULT if audits is None else own)}
    names = [audits] if isinstance(audits, str) else list(audits)
    for name in names:
        if name not in own:
            what = "only of flow maps" if name in IDENTITIES else suggest(str(name), own)
            raise SfumatoError(f"There is no audit {name!r} of this model: {what}.")
    return {name: own[name] for name in names}


def measured(model: Any, draws: Draws, guess: Trivial, wanted: dict[str, Identity], notes: Sequence[str] = ()) -> Audit:
    """These identities on fixed draws; guess: the trivial predictor, for mean and variance of the data."""

    def measure(part: Tensor) -> Columns:
        seen = Seen(model, guess, draws, part)
        found: Columns = {"loss": seen.error}
        for name, one in wanted.items():
            if one.measure is not None:
                found[f"{name} above"], found[f"{name} below"] = one.measure(seen)
            if one.fields is not None:
                found[f"{name} along"], found[f"{name} gram"] = fields.columns(seen.residual, one.fields(seen))
        return found

    table = draws.table(model, measure)
    half = draws.row % 2 == 0
    findings = {name: _finding(name, one, draws, table, half) for name, one in wanted.items()}
    return Audit(draws.bins.middle, draws.count, findings, guess, tuple(notes))


def _finding(name: str, one: Identity, draws: Draws, table: Columns, half: Tensor) -> Finding:
    """The value of an identity at each level, and for those with fields what correcting for them gains."""
    if one.fields is None:
        return Finding(_ratios(draws, table[f"{name} above"], table[f"{name} below"]), None, None)
    along, gram = table[f"{name} along"], table[f"{name} gram"]
    c = fields.fit(draws, along, gram, half)
    shared, square = fields.explained(draws, along, gram, c)
    gain = _ratios(draws, 2 * shared - square, table["loss"], ~half)
    if one.measure is not None:
        return Finding(_ratios(draws, table[f"{name} above"], table[f"{name} below"]), gain, c)
    return Finding(_ratios(draws, shared, table["loss"], ~half), gain, c)


def _ratios(draws: Draws, above: Tensor, below: Tensor, chosen: Tensor | None = None) -> list[Interval]:
    """E[above] / E[below] at each level, with the error of the ratio to first order, samples with several draws taken
    together."""
    levels, found = draws.index % draws.levels, []
    for level in range(draws.levels):
        own = (levels == level) if chosen is None else (levels == level) & chosen
        a, b, rows = above[own], below[own], draws.row[own]
        value = float(a.mean() / b.mean()) if float(b.mean()) != 0 else 0.0
        off = (a - value * b) / (b.mean() if float(b.mean()) != 0 else 1.0)
        error = mean(off, rows, torch.zeros_like(rows))
        found.append(Interval(value, value + error.low, value + error.high, error.stderr))
    return found
