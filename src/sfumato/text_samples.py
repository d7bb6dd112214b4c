"""Samples of text: around what is known of it, and of any length.

window    of the L symbols that a model knows, those that are known stay and the others start as masks, at the time
          when the process keeps as many: alpha(t) = known / L
longer    windows one after another, each of which begins with the last half of what there is
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.text import Tokeniser
from sfumato.errors import SfumatoError, whole
from sfumato.process import Masked
from sfumato.sampling import sample
from sfumato.solver_selection import AnySolver

UNKNOWN = "_"  # of `infill`
STEPS = 64
RULE = "\n" + "-" * 40 + "\n"  # between the texts of one file
_STREAM = 0x9E3779B97F4A7C15  # what seeds of later windows are apart


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
    **cond: Any,
) -> list[str]:
    """n texts of `length` symbols, by default one window of the model: `sf.sample_text(model, 4, prompt="To be")`.

    prompt: how each text begins. infill: a whole text, in which each underscore is one symbol to be found:
    "The ____ of ____". steps: of each window, by default 64, or as many as there are symbols. Sample i of a seed does
    not depend on n or batch. cond: as for `sample`. Raises SfumatoError for a model that is not one of masked text.
    """
    text, window = _of_text(model)
    if prompt and infill is not None:
        raise SfumatoError("A prompt begins a text, and infill is a whole one: give one of the two.")
    known = _known(text, prompt if infill is None else infill, infill is not None)
    if infill is not None and not (known < 0).any():
        raise SfumatoError(f"infill has nothing to find: write {UNKNOWN} for each unknown symbol.")
    length = whole("length", max(len(known), window if infill is None else 1) if length is None else length)
    count = torch.arange(whole("n, the number of samples,", n)) if index is None else torch.as_tensor(index)

    def fill(z: Tensor, number: int) -> Tensor:
        """The window of this number, of which -1 is unknown."""
        free = z < 0
        start = torch.where(free, model.process.mask, z)[:, None]
        most = int(free[0].sum())
        kept = 1 - most / window
        t = 1.0 if most == window else float(model.process.clock.time(torch.logit(torch.tensor(kept).double())))
        calls = min(STEPS, most) if steps is None else steps
        own = (seed + number * _STREAM) % 2**63
        drawn = sample(
            model, steps=calls, solver=solver, seed=own, z=start, index=count, t_start=t, batch=batch, normalised=True,
            cond=cond,
        )  # fmt: skip
        return torch.where(free, drawn[:, 0], z)

    rows = _filled(known, max(length, len(known)), window, len(count), fill)
    return [text.decode(row.tolist()) for row in rows[:, : max(length, len(known))]]


def _of_text(model: Any) -> tuple[Tokeniser, int]:
    """(tokeniser, symbols of a window) of a model of masked text."""
    spec = getattr(model, "spec", None)
    text = getattr(spec, "text", None)
    if spec is None or text is None:
        raise SfumatoError("sample_text takes a model of text, which has a tokeniser: use sf.sample.")
    if not isinstance(model.process, Masked):
        raise SfumatoError(
            f"The symbols of a {type(model.process).__name__} process change until its end, so that none can be known: "
            "sample_text needs the masked one."
        )
    return text, spec.shape[1]


def _known(text: Tokeniser, words: str, gaps: bool) -> np.ndarray:
    """The symbols of a text, -1 for each underscore if `gaps`."""
    parts = re.split(f"({UNKNOWN})", words) if gaps else [words]
    found = [np.array([-1]) if gaps and part == UNKNOWN else text.encode(part) for part in parts if part]
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
