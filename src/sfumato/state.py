"""States: a tensor (B, ...), or a dict of states that are corrupted together (`process.Product`).

Code that splits, joins or moves batches uses these functions, which handle both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, an, counted
from sfumato.noise import Noise

State = Any  # Tensor | dict[str, "State"]: a recursive type that type checkers cannot follow through dict's invariance
Shape = Any  # tuple[int, ...] | dict[str, "Shape"]: of one sample


def map_state(f: Callable[..., Any], *states: State) -> State:
    """Apply f to the corresponding leaves of states of the same structure."""
    first = states[0]
    if isinstance(first, Mapping):
        return {name: map_state(f, *(state[name] for state in states)) for name in first}
    return f(*states)


def rows_of(state: State, index: Tensor | slice) -> State:
    """Some rows of a state."""
    return map_state(lambda leaf: leaf[index], state)


def numbered(which: Any, count: int | None = None, of: str = "rows") -> Tensor:
    """Row numbers, int64, from a bool mask (count,) or from numbers.

    count: the total number of rows, to check the numbers (negative ones count from the end). of: their name in errors.
    """
    try:
        index = torch.as_tensor(which, device="cpu")
    except (TypeError, ValueError, RuntimeError):  # torch has all three for what is no array of numbers
        raise SfumatoError(f"The {of} must be one axis of integers or a bool mask, not {which!r:.80}.") from None
    index = index.reshape(-1) if index.ndim == 0 else index
    if index.dtype == torch.bool and index.ndim == 1 and count in (None, len(index)):
        return torch.nonzero(index)[:, 0]
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool) or not index.numel()
    if not whole or index.ndim != 1:
        mask = "" if count is None else f" ({count},)"
        got = f"{str(index.dtype).removeprefix('torch.')} {tuple(index.shape)}"
        raise SfumatoError(f"The {of} must be one axis of integers or a bool mask{mask}; got {got}.")
    index = index.to(torch.int64)
    if count is None:
        return index
    if bool(((index < -count) | (index >= count)).any()):
        raise SfumatoError(f"The {of} must be numbers from 0 to {count - 1}; got {index.tolist()}.")
    return torch.where(index < 0, index + count, index)


def cat_states(states: Sequence[State]) -> State:
    """Concatenate states along the batch."""
    return map_state(lambda *leaves: torch.cat(leaves), *states)


def first_leaf(state: State) -> Tensor:
    """The first tensor of a state, to read what all leaves share: the number of rows, the device."""
    while isinstance(state, Mapping):
        state = next(iter(state.values()))
    return state


def shape_of(state: State) -> Shape:
    """The shape of one sample of a state."""
    return map_state(lambda leaf: tuple(leaf.shape[1:]), state)


def numbers(noise: Noise | State, shape: Shape, device: Any = None, dtype: torch.dtype = torch.float32) -> State:
    """Standard normal numbers for samples of `shape` from a `Noise` source, with an independent stream for each leaf of
    a dict; anything else is returned unchanged."""
    if not isinstance(noise, Noise):
        return noise
    if isinstance(shape, Mapping):
        return {name: numbers(noise.fold(name), part, device, dtype) for name, part in shape.items()}
    return noise.normal(shape, device, dtype)


def numbers_like(noise: Noise | State, state: State) -> State:
    """Standard normal numbers with the shapes and device of a state, and its dtype if that is floating point."""
    if not isinstance(noise, Noise):
        return noise
    if isinstance(state, Mapping):
        return {name: numbers_like(noise.fold(name), leaf) for name, leaf in state.items()}
    dtype = state.dtype if state.is_floating_point() else torch.float32
    return noise.normal(tuple(state.shape[1:]), state.device, dtype)


def samples(values: Any, what: str, gaps: bool = False) -> Tensor:
    """Finite samples (B, ...) as a tensor; SfumatoError reports how many values are not finite, and the first place.

    gaps: whether NaN stands for a missing value.
    """
    try:
        x = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise SfumatoError(f"{what} takes numbers (B, ...), not {an(type(values).__name__)}.") from None
    if x.ndim < 2 or not len(x):
        raise SfumatoError(f"{what} takes samples (B, ...), at least one, not an array of shape {tuple(x.shape)}.")
    wrong = (x.isinf() if gaps else ~x.isfinite()).nonzero()
    if len(wrong):
        where = tuple(wrong[0].tolist())
        raise SfumatoError(
            f"{what} got {counted(len(wrong), 'value that is', 'values that are')} NaN or infinite, the first at "
            f"{where}."
        )
    return x
