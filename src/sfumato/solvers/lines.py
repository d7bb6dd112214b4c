"""The lines of a plan: each computes the next state from the belief of a call.

Linear      z_{k+1} = sum_j a_kj z_j + sum_j b_kj x_j + c_k xi_k          x_j = E[x | z_j] of past calls
Bridge      z_{k+1} ~ p(z_s | z_t) under the belief, `belief.to(s)`       any state space
Corrector   (model, z, t, s, state, noise) -> (z, state)                  calls the model itself
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import schema
from sfumato.errors import SfumatoError, an
from sfumato.state import State

LARGEST = 1e12  # of coefficients: far above those of any schedule, and far below what overflows
Coefficient = float | Tensor  # a number, or one per element, which broadcasts against a sample


class Linear(NamedTuple):
    """The next state as a linear combination; z and x map the index of a call to its coefficient."""

    z: Mapping[int, Any]
    x: Mapping[int, Any]
    noise: Any = 0.0

    @property
    def draws(self) -> bool:
        return is_nonzero(self.noise)

    @property
    def numbers(self) -> bool:
        """Whether no coefficient is a vector."""
        return not any(isinstance(c, Tensor) for c in (self.noise, *self.z.values(), *self.x.values()))


class Jump(abc.ABC):
    """A line that computes the next state from the belief of its own call only."""

    draws: bool = True

    @abc.abstractmethod
    def __call__(self, z: State, belief: Any, s: Tensor | float, noise: Any) -> State:
        """The state at s, a number or (B,), from z and the belief about it; noise as for `belief.to`, or None."""


@final
@dataclasses.dataclass(frozen=True)
class Bridge(Jump):
    """A draw of z_s by `belief.to`: for a Gaussian process eta = 0 is DDIM and eta = 1 the ancestral step (DDPM).

    draws: whether it needs noise; symbols need it at any eta.
    """

    eta: float = 1.0
    draws: bool = True

    def __call__(self, z: State, belief: Any, s: Tensor | float, noise: Any) -> State:
        return belief.to(s, self.eta, noise)


class Corrector(abc.ABC):
    """A line that calls the model itself, any number of times, and may carry tensors (B, ...) from line to line.

    calls: the number of model calls in its last run.
    """

    draws: bool = True
    calls: int = 1

    @abc.abstractmethod
    def __call__(
        self, model: Any, z: State, t: float, s: float, state: State | None, noise: Any
    ) -> tuple[State, State | None]:
        """(z at s, carried state) for the rows at this line; `state` is that of the previous line, None at first."""


AnyLine = Linear | Jump | Corrector


class Kind(NamedTuple):
    """How a kind of line that is no `Linear` and no `Bridge` is read from JSON: its check, and what makes it."""

    check: schema.Check
    make: Callable[[Mapping[str, Any]], AnyLine]


KINDS: dict[str, Kind] = {}  # by the key that only such lines have


def broadcasts(coefficient: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a coefficient of this shape broadcasts against one sample without changing its shape."""
    pairs = zip(reversed(coefficient), reversed(shape), strict=False)
    return len(coefficient) <= len(shape) and all(c in (1, s) for c, s in pairs)


def is_nonzero(c: Coefficient) -> bool:
    return bool((c != 0).any()) if isinstance(c, Tensor) else c != 0


def to_json(line: AnyLine) -> dict[str, Any]:
    """A line as JSON; coefficients are numbers, or lists if they have one entry per element."""
    if isinstance(line, Bridge):
        return {"bridge": line.eta, "draws": line.draws}
    own: Any = getattr(line, "to_dict", None)
    if own is not None:
        return dict(own())
    if not isinstance(line, Linear):
        raise SfumatoError(f"A plan with {an(type(line).__name__)} line has no coefficient table and cannot be saved.")
    sums = {name: {str(j): _listed(c) for j, c in getattr(line, name).items()} for name in "zx"}
    return {**sums, "noise": _listed(line.noise)}


def _coefficient(value: Any, where: str) -> None:
    if not isinstance(value, list):
        return schema.number(-LARGEST, LARGEST)(value, where)
    for i, each in enumerate(value):
        _coefficient(each, f"{where}.{i}")


def _sum(value: Any, where: str) -> None:
    schema.mapping(_coefficient)(value, where)
    for call in value:
        if not call.isdecimal() or len(call) > 9:
            schema.refuse(where, "numbers of calls", call)


_BRIDGE = schema.fields({"bridge": schema.number(0, LARGEST), "draws": schema.flag}, rest=None)
_LINEAR = schema.fields({"z": _sum, "x": _sum, "noise": _coefficient}, rest=None)


def line_in_json(value: Any, where: str) -> None:
    """The check of a line as JSON (`schema`)."""
    kind = _kind(value)
    if kind is not None:
        return kind.check(value, where)
    (_BRIDGE if isinstance(value, Mapping) and "bridge" in value else _LINEAR)(value, where)


def _kind(value: Any) -> Kind | None:
    return next((KINDS[name] for name in KINDS if isinstance(value, Mapping) and name in value), None)


def from_json(data: Mapping[str, Any]) -> AnyLine:
    """The inverse of `to_json`, for what `line_in_json` has passed."""
    kind = _kind(data)
    if kind is not None:
        return kind.make(data)
    if "bridge" in data:
        return Bridge(float(data["bridge"]), data["draws"])
    z, x = ({int(j): _read(c) for j, c in data[name].items()} for name in "zx")
    return Linear(z, x, _read(data["noise"]))


def in_words(line: AnyLine) -> str:
    """The line as text, for a printed plan."""
    if not isinstance(line, Linear):
        return str(line)
    terms = [f"{_shown(c)} {name}{j}" for name in "zx" for j, c in getattr(line, name).items()]
    return " ".join([*terms, f"{_shown(line.noise)} xi"] if line.draws else terms)


def _shown(c: Coefficient) -> str:
    return f"[{float(c.min()):+.4g} .. {float(c.max()):+.4g}]" if isinstance(c, Tensor) else f"{c:+.4g}"


def _listed(c: Coefficient) -> Any:
    return c.tolist() if isinstance(c, Tensor) else c


def _read(c: Any) -> Coefficient:
    if not isinstance(c, list):
        return c
    try:
        return torch.tensor(c, dtype=torch.float64)
    except (ValueError, TypeError):
        raise SfumatoError("This is not a solver plan: a coefficient has rows of different lengths.") from None
