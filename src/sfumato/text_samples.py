"""Samples of text: around what is known of it, and of any length.

window    of the L symbols that a model knows, those that are known stay and the others start as masks, at the time
          when the process keeps as many: alpha(t) = known / L
longer    windows one after another, each of which begins with the last half of what there is
whole     texts of any length under `process.Deletion`, by insertions into the empty one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.autoregressive import Autoregressive
from sfumato.compose import Known
from sfumato.data.text import Tokeniser
from sfumato.errors import SfumatoError, an, counted, whole
from sfumato.machine import default_cpu
from sfumato.process import Deletion, Embedded, Masked
from sfumato.sampling import sample
from sfumato.solver_selection import AnySolver, stored_plan
from sfumato.solvers import Plan
from sfumato.solvers.reveal import Reveal

UNKNOWN = "_"  # of `infill`; a backslash before it makes it an underscore of the text
STEPS = 64
RULE = "\n" + "-" * 40 + "\n"  # between the texts of one file
_STREAM = 0x9E3779B97F4A7C15  # what seeds of later windows are apart


@default_cpu()
def sample_text(
    model: Any,
    n: int = 1,
    length: int | None = None,
    prompt: str = "",
    infill: str | None = None,
    steps: int | None = None,
    solver: AnySolver | None = None,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    batch: int = 256,
    order: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    **cond: Any,
) -> list[str]:
    """n texts of `length` symbols, by default one window of the model: `sf.sample_text(model, 4, prompt="To be")`.

    prompt: how each text begins. infill: a whole text, in which each underscore is one symbol to be found: "The ____ of
    ____"; \\_ is an underscore of the text. steps: of each window, by default 64, or as many as there are symbols.
    order: in which masks are revealed, one of `solvers.reveal.ORDERS`, by default first-hitting, which is that of the
    process. temperature, top_p: below 1 they draw likelier symbols (`Logits.tempered`). solver: another one instead.
    Sample i of a seed does not depend on n or batch. cond: as for `sample`. An autoregressive model needs a call for
    each symbol, whatever steps are, and knows beginnings only; one of whole texts (`process.Deletion`) knows nothing
    before, and gives texts of the lengths that it has learned; one of vectors (`process.Embedded`) keeps what is known
    by replacement (`compose.Known`). Raises SfumatoError for a model that is not one of text.
    """
    text, window = _of_text(model)
    solver = _solver(model, solver, order, temperature, top_p)
    index = torch.arange(whole("n, the number of samples,", n)) if index is None else torch.as_tensor(index)
    if isinstance(getattr(model, "process", None), Deletion):
        if prompt or infill is not None or length is not None:
            raise SfumatoError(
                "A model of whole texts inserts symbols anywhere, up to the length that it has learned: leave prompt, "
                "infill and length out."
            )
        steps = STEPS if steps is None and not isinstance(solver, Plan) else steps
        how: dict[str, Any] = {"steps": steps, "solver": solver, "seed": seed, "batch": batch, "cond": cond}
        return [text.decode(row.flatten().tolist()) for row in sample(model, index=index, normalised=True, **how)]
    for name, words in (("prompt", prompt), ("infill", infill or "")):
        if not isinstance(words, str):
            raise SfumatoError(f"{name} must be one text, not {an(type(words).__name__)}.")
    if prompt and infill is not None:
        raise SfumatoError("A prompt begins a text, and infill is a whole one: give one of the two.")
    known = _known(text, prompt if infill is None else infill, infill is not None)
    if infill is not None and not (known < 0).any():
        raise SfumatoError(f"infill has nothing to find: write {UNKNOWN} for each unknown symbol.")
    usual = len(known) if infill is not None else window if len(known) < window else len(known) + window // 2
    length = whole("length", usual if length is None else length)
    if infill is None and len(known) >= length:
        raise SfumatoError(
            f"The prompt has {counted(len(known), 'symbol')}, and a length of {length} leaves none to find."
        )
    length = max(length, len(known))
    if isinstance(model, Autoregressive):
        fill = partial(_behind, model, length, index, batch, {"temperature": temperature, "top_p": top_p, **cond})
    else:
        fill = partial(_within, model, steps, solver, index, batch, cond)
    rows = _filled(known, length, window, len(index), lambda z, number: fill(z, (seed + number * _STREAM) % 2**63))
    return [text.decode(row.tolist()) for row in rows[:, :length]]


def _solver(model: Any, solver: AnySolver | None, order: str | None, temperature: float, top_p: float) -> Any:
    """The solver of these choices; None for a model that has no masks."""
    if isinstance(model, Autoregressive):
        if order not in (None, "left-to-right"):
            raise SfumatoError(f"An autoregressive model draws left to right: leave the order {order!r} out.")
        return None
    if solver is None and isinstance(model.process, Masked):
        return Reveal(order=order or Reveal.order, temperature=temperature, top_p=top_p)
    if order is not None or temperature != 1 or top_p != 1:
        raise SfumatoError(
            "order, temperature and top_p belong to masked text and its solver 'reveal': leave them or the solver out."
        )
    return solver


def _within(
    model: Any, steps: int | None, solver: AnySolver | None, index: Tensor, batch: int, cond: Any, z: Tensor, seed: int
) -> Tensor:  # fmt: skip
    """The window z (n, L) with symbols for all -1."""
    free = z < 0
    most = int(free[0].sum())
    if steps is None and not isinstance(solver, Plan):
        steps = min(STEPS, most)
    how: dict[str, Any] = {"steps": steps, "solver": solver, "seed": seed, "normalised": True, "cond": cond}
    if not isinstance(model.process, Masked):
        parts = torch.arange(len(z)).split(batch)
        drawn = torch.cat([sample(Known(model, z[i, None]), index=index[i], batch=batch, **how) for i in parts])
        return torch.where(free, drawn[:, 0], z)
    if steps is not None and solver == Reveal():
        how["solver"] = stored_plan(model, steps) or solver
    drawn = sample(
        model, index=index, batch=batch, z=torch.where(free, model.process.mask, z)[:, None],
        t_start=_start(model, 1 - most / z.shape[1]), **how,
    )  # fmt: skip
    return torch.where(free, drawn[:, 0], z)


def _start(model: Any, kept: float) -> float:
    """The time at which the process keeps this share of the symbols."""
    return float(model.process.clock.time(torch.logit(torch.tensor(kept, dtype=torch.float64)))) if kept > 0 else 1.0


def _behind(
    model: Autoregressive, length: int, index: Tensor, batch: int, more: Any, z: Tensor, seed: int
) -> Tensor:  # fmt: skip
    """The window z (n, L) with symbols behind those that are known, as far as `length` asks."""
    known, stop = int((z[0] >= 0).sum()), min(length, z.shape[1])
    if bool((z[0, :known] < 0).any()):
        raise SfumatoError("An autoregressive model knows beginnings only: give a prompt, or take a masked model.")
    parts = torch.arange(len(z)).split(batch)
    drawn = torch.cat([model.extended(z[i, None, :known], stop, seed, index[i], **more)[:, 0].cpu() for i in parts])
    return torch.nn.functional.pad(drawn, (0, z.shape[1] - stop))


def _of_text(model: Any) -> tuple[Tokeniser, int]:
    """(tokeniser, symbols of a window) of a model of text."""
    spec = getattr(model, "spec", None)
    text = getattr(spec, "text", None)
    if spec is None or text is None:
        raise SfumatoError("sample_text takes a model of text, which has a tokeniser: use sf.sample.")
    if not isinstance(model, Autoregressive) and not isinstance(model.process, Masked | Embedded | Deletion):
        raise SfumatoError(
            f"The symbols of {an(type(model.process).__name__)} process change until its end, so that none can be "
            "known: sample_text needs the masked one, the embedded one, or that of deletion."
        )
    return text, spec.shape[1]


def _known(text: Tokeniser, words: str, gaps: bool) -> np.ndarray:
    """The symbols of a text, -1 for each underscore that has no backslash if `gaps`."""
    parts = re.split(rf"(?<!\\)({UNKNOWN})", words) if gaps else [words]
    kept = [part.replace(rf"\{UNKNOWN}", UNKNOWN) if gaps and part != UNKNOWN else part for part in parts]
    gap = [gaps and part == UNKNOWN for part in parts]
    found = [np.array([-1]) if each else text.encode(part) for part, each in zip(kept, gap, strict=True) if part]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _filled(known: np.ndarray, length: int, window: int, n: int, fill: Callable[[Tensor, int], Tensor]) -> Tensor:
    """n texts (n, length or more) around the known symbols; `fill` finds those of a window, given its number."""
    rows = torch.full((n, max(length, window)), -1)
    rows[:, : len(known)] = torch.from_numpy(known)
    number = 0
    while bool((free := rows[0, :length] < 0).any()):
        first = int(free.nonzero()[0])
        start = min(max(0, first - window // 2), rows.shape[1] - window) if first >= window else 0
        part = slice(start, start + window)
        rows[:, part] = fill(rows[:, part], number)
        number += 1
    return rows
