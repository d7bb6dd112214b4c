"""States: a tensor (B, ...), or a dict of states that are corrupted together (`process.Product`).

Whatever cuts, joins or moves a batch does so through these few functions, and serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.noise import Noise

State = Any  # Tensor | dict[str, "State"]: a recursive type that type checkers cannot follow through dict's invariance
Shape = Any  # tuple[int, ...] | dict[str, "Shape"]: of one sample


def map_state(f: Callable[..., Any], *states: State) -> State:
    """f of the leaves, in the form of the states, which all have the same."""
    first = states[0]
    if isinstance(first, Mapping):
        return {name: map_state(f, *(state[name] for state in states)) for name in first}
    return f(*states)


def rows_of(state: State, index: Tensor | slice) -> State:
    """Some rows of a state."""
    return map_state(lambda leaf: leaf[index], state)


def numbered(which: Any, count: int | None = None, of: str = "rows") -> Tensor:
    """Rows as their numbers, int64: those where a mask, bool (count,), is true, or numbers themselves.

    count: of all rows, where these are numbers below it (below 0: from the end). of: what sentences call them.
    """
    index = torch.as_tensor(which).cpu()
    index = index.reshape(-1) if index.ndim == 0 else index
    if index.dtype == torch.bool and index.ndim == 1 and count in (None, len(index)):
        return torch.nonzero(index)[:, 0]
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool) or not index.numel()
    if not whole or index.ndim != 1:
        mask = "" if count is None else f" ({count},)"
        got = f"{str(index.dtype).removeprefix('torch.')} {tuple(index.shape)}"
        raise SfumatoError(f"The {of} are whole numbers, one axis of them, or a mask, bool{mask}; got {got}.")
    index = index.to(torch.int64)
    if count is None:
        return index
    if bool(((index < -count) | (index >= count)).any()):
        raise SfumatoError(f"The {of} are numbers from 0 to {count - 1}; got {index.tolist()}.")
    return torch.where(index < 0, index + count, index)


def cat_states(states: Sequence[State]) -> State:
    """The rows of all, one after the other."""
    return map_state(lambda *leaves: torch.cat(leaves), *states)


def first_leaf(state: State) -> Tensor:
    """The first tensor of a state, for what all share: the number of rows, the device."""
    while isinstance(state, Mapping):
        state = next(iter(state.values()))
    return state


def shape_of(state: State) -> Shape:
    """The shape of one sample of a state."""
    return map_state(lambda leaf: tuple(leaf.shape[1:]), state)


def numbers(noise: Noise | State, shape: Shape, device: Any = None, dtype: torch.dtype = torch.float32) -> State:
    """Standard normal numbers for samples of `shape`: those of a source of noise, each leaf of a dict with a stream of
    its own; numbers that are given already pass."""
    if not isinstance(noise, Noise):
        return noise
    if isinstance(shape, Mapping):
        return {name: numbers(noise.fold(name), part, device, dtype) for name, part in shape.items()}
    return noise.normal(shape, device, dtype)


def numbers_like(noise: Noise | State, state: State) -> State:
    """Standard normal numbers for a state: of its shapes and device; of its dtype where that is one of real numbers."""
    if not isinstance(noise, Noise):
        return noise
    if isinstance(state, Mapping):
        return {name: numbers_like(noise.fold(name), leaf) for name, leaf in state.items()}
    dtype = state.dtype if state.is_floating_point() else torch.float32
    return noise.normal(tuple(state.shape[1:]), state.device, dtype)


def samples(given: Any, what: str) -> Tensor:
    """Finite numbers (B, ...) as a tensor; SfumatoError says how many are not, and where the first is."""
    try:
        x = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise SfumatoError(f"{what} takes numbers (B, ...), not a {type(given).__name__}.") from None
    if x.ndim < 2 or not len(x):
        raise SfumatoError(f"{what} takes samples (B, ...), at least one, not an array of shape {tuple(x.shape)}.")
    wrong = (~x.isfinite()).nonzero()
    if len(wrong):
        where = tuple(wrong[0].tolist())
        raise SfumatoError(f"{what} was given {len(wrong):,} values that are NaN or infinite, the first at {where}.")
    return x
