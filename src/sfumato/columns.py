"""Numbers of a table at levels of their own, so that any column may be known while others are drawn or scored.

    z_i = alpha(t_i) x_i + sigma(t_i) eps_i,   y = net(z, level of t, levels of t_1 .. t_n)

A number at t_i = 0 is known, one at t_i = 1 says nothing. Symbols need no level: they are masked or known.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.belief import Beliefs, Estimate, broadcast
from sfumato.conditions import Given
from sfumato.data.row_weights import RowWeights
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser, hears
from sfumato.nets.mlp import LEVELS
from sfumato.schedule import Time, as_time
from sfumato.state import State

NUMBERS = "numbers"  # the part of a product, whose network is told the levels of each


def condition(numbers: int) -> dict[str, dict[str, Any]]:
    """What a network is told beside its input so that numbers can have levels of their own."""
    return {LEVELS: {"kind": "field", "shape": [numbers]}} if numbers else {}


def takes_levels(model: Any) -> bool:
    """Whether the network of a model is told the levels of its numbers."""
    return hears(model, LEVELS)


def uncalibrated(model: Any) -> Any:
    """The model without the weights of rows that `calibrate`, or the end of its training, gave it; the model itself
    without them."""
    return model if weights_of(model) is None else with_weights(model, None)


def weights_of(model: Any) -> RowWeights | None:
    """The weights by which rows of a model's table are accepted; None without them."""
    return getattr(getattr(model, "spec", None), "weights", None)


def with_weights(model: Any, weights: RowWeights | None) -> Any:
    """The model with these weights of rows in the place of its own; parameters are shared."""
    made = copy.copy(model)
    if isinstance(model, Denoiser):
        made.spec = dataclasses.replace(model.spec, weights=weights)
    else:
        made.inner = with_weights(model.inner, weights)
    return made


class Believed(NamedTuple):
    """The beliefs about the parts, of which that about the numbers is not to be used, and a belief about each number as
    a sample of its own, (B n, 1)."""

    parts: Beliefs
    each: Estimate


def believe(model: Any, z: State, t: Time, times: Tensor, told: Tensor | None = None, **cond: Any) -> Believed:
    """The belief about z (numbers (B, n) and symbols), the numbers at `times` (B, n), float64, of their own.

    t: a number or (B,), the time that the network is told; told: bool (B,), the rows in which it is told `times` too,
    by default all. In the others `times` must be t.
    """
    process, x = model.process, z[NUMBERS]
    numbers, t = process.processes[NUMBERS], as_time(t).to(x.device).expand(len(x))
    flat, level = numbers.inputs(x.reshape(-1, 1), times.reshape(-1))
    common, _ = numbers.scaling(t, x.device)  # by which `raw` multiplies what it is given
    heard = {**z, NUMBERS: flat.reshape(x.shape) / broadcast(common, x)}
    if takes_levels(model):
        told = torch.ones(len(x), dtype=torch.bool, device=x.device) if told is None else told
        cond[LEVELS] = Given(level.reshape(x.shape), told)
    y = model.raw(heard, t, **cond)
    own = y[:, : x.shape[1]].reshape(-1, 1)
    return Believed(process.read(y, z, t), numbers.read(own, x.reshape(-1, 1), times.reshape(-1)))


class Known:
    """A model of a table of whose rows some entries are known: what it believes of a known number is that number.

    x: rows of the table as vectors (B, D); known: bool (B, D), which of their entries are known. Known symbols stand in
    the state that a walk starts from (`start`), and are never masked again. The model is taken without the weights
    of rows (`calibration`), which are those of rows of which nothing is known.
    """

    def __init__(self, model: Any, x: Tensor, known: Tensor) -> None:
        model = uncalibrated(model)
        self.model, self.rows_of_table, self.known = model, x, known
        self.x = model.spec.normaliser.normalise(x).to(x)
        self.numbers = model.process.shapes.get(NUMBERS, (0,))[0]
        if bool(known[:, : self.numbers].any()) and not takes_levels(model):
            raise SfumatoError(
                "The network of this model is told one level for all numbers, so that none can be given: train a model "
                "without net=, or with a network that takes the condition 'levels'."
            )

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def rows(self, index: Tensor) -> Known:
        """The model of these rows."""
        return Known(self.model, self.rows_of_table[index], self.known[index])

    def start(self, z: State) -> State:
        """The state z with what is known in its place."""
        rows = torch.where(self.known, self.x, self.process.table(z))
        parts = rows.split([shape[0] for shape in self.process.shapes.values()], 1)
        return {name: part.to(z[name].dtype) for name, part in zip(self.process.shapes, parts, strict=True)}

    def __call__(self, z: State, t: Time, /, **cond: Any) -> Any:
        known = self.known[:, : self.numbers].to(self.device)
        if not bool(known.any()):
            return self.model(z, t, **cond)
        x, noisy = self.x[:, : self.numbers].to(z[NUMBERS]), z[NUMBERS]
        times = torch.where(known, 0.0, as_time(t).to(known.device).reshape(-1, 1))
        found = believe(self.model, {**z, NUMBERS: torch.where(known, x, noisy)}, t, times, known.any(1), **cond)
        mean = torch.where(known, x, found.each.x.reshape(x.shape))
        schedule = self.process.processes[NUMBERS].schedule
        return Beliefs({**found.parts, NUMBERS: Estimate(noisy, t, schedule, x=mean)})
