"""Encoded conditions of a batch: name -> (values, present), one row per sample. Presence is a mask, not a sentinel.

    Conditions.of({"label": [2, -1], "mass": [0.3, nan]})  =  label (2, -1) present (1, 0), mass (0.3, 0) present (1, 0)

Absent values are filled with -1 for whole numbers and 0 for floats, so that equal conditions are equal tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError

PREVIOUS = "previous"  # the condition of a self-conditioned network: the estimate of the call before
CARRIED = "carried"  # the argument of a network that `carries`: its own latents at the end of the call before
KNOWN = "known"  # of a network of symbols that are vectors: those of the known ones, a field, 0 elsewhere
LEFT = (PREVIOUS, CARRIED)  # what a call leaves to the next one in a walk
EMBEDDING = "embedding"  # of the decoder of an unCLIP pair
LOW, AUGMENTATION = "low_resolution", "augmentation"  # of an upscaler: the small sample, and the level of its noise


class Given(NamedTuple):
    """One condition of a batch: encoded values (B, ...) for a network, and where they are present, bool (B,).

    Of tokens (B, L, d), `present` may be (B, L): which of them are, so that sequences of several lengths are one
    tensor; a row without any is absent.
    """

    values: Tensor
    present: Tensor

    @classmethod
    def of(cls, value: Given | Tensor) -> Given:
        """From a tensor: one-dimensional whole numbers are absent if negative, floats if their row contains NaN."""
        if isinstance(value, Given):
            return value
        if not isinstance(value, Tensor):
            raise SfumatoError(
                f"{value!r:.40} is not a tensor: encode conditions first, with sf.conditions.resolve(model, {{name: "
                "value}, n)"
            )
        if value.ndim < 1:
            raise SfumatoError("a condition of a batch needs one row per sample, not a single number")
        if value.is_floating_point():
            present = ~value.isnan().reshape(len(value), -1).any(1)
            return cls(value, present).masked()
        value = value.long()
        present = value >= 0 if value.ndim == 1 else torch.ones(len(value), dtype=torch.bool, device=value.device)
        return cls(value, present).masked()

    @classmethod
    def cat(cls, parts: Sequence[Given]) -> Given:
        """Concatenate the rows of several batches; tokens are padded to the longest, with absent ones."""
        if parts[0].present.ndim == 2:
            most = max(part.present.shape[1] for part in parts)
            parts = [part._longer(most - part.present.shape[1]) for part in parts]
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.present for part in parts]))

    def _longer(self, count: int) -> Given:
        return Given(F.pad(self.values, (0, 0, 0, count)), F.pad(self.present, (0, count), value=False))

    @property
    def is_label(self) -> bool:
        """Whether the values are whole numbers (B,) with -1 only where absent."""
        return _is_label(self.values)

    @property
    def known(self) -> Tensor:
        """The rows that are not absent, bool (B,)."""
        return self.present if self.present.ndim == 1 else self.present.any(1)

    def masked(self) -> Given:
        """The same with absent values replaced by the filler, -1 or 0.0."""
        filler = 0.0 if self.values.is_floating_point() else -1
        known = self.present.reshape(*self.present.shape, *(1,) * (self.values.ndim - self.present.ndim))
        return Given(torch.where(known, self.values, filler), self.present)

    def rows(self, index: slice | Tensor) -> Given:
        """These rows: a slice or int64 (n,)."""
        if isinstance(index, Tensor):
            index = index.to(self.values.device)
        return Given(self.values[index], self.present[index])

    def keep(self, kept: Tensor) -> Given:
        """The same, absent where `kept`, bool (B,), is False."""
        own = kept.to(self.present.device).reshape(-1, *(1,) * (self.present.ndim - 1))
        return Given(self.values, self.present & own).masked()

    def null(self) -> Given:
        """The same, absent in every row."""
        return Given(self.values, torch.zeros_like(self.present)).masked()

    def to(self, device: torch.device | str) -> Given:
        return Given(self.values.to(device), self.present.to(device))


class Conditions(Mapping[str, Any]):
    """The conditions of a batch by name, in order; unpacks as `model(z, t, **conditions)`.

    Items are a plain tensor for a label, int64 (B,), -1 where absent, and a `Given` for everything else;
    `conditions.given(name)` is always a `Given`.
    given: name -> Given or a tensor (`Given.of`). Raises SfumatoError unless all have the same number of rows.
    """

    def __init__(self, given: Mapping[str, Given | Tensor] | None = None) -> None:
        self._given = {str(name): _of(name, value) for name, value in (given or {}).items()}
        counts = {len(value.values) for value in self._given.values()}
        if len(counts) > 1:
            raise SfumatoError(f"the conditions of a batch must have equally many rows, not {sorted(counts)}")

    @classmethod
    def of(cls, given: Mapping[str, Given | Tensor] | Tensor | None) -> Conditions:
        """`given` itself if it is Conditions; a bare tensor holds labels, int64 (B,)."""
        if isinstance(given, Conditions):
            return given
        return cls({"label": given} if isinstance(given, Tensor) else given)

    def __getitem__(self, name: str) -> Any:
        given = self._given[name]
        return given.values if given.is_label else given

    def given(self, name: str) -> Given:
        """A condition's values and presence."""
        return self._given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __repr__(self) -> str:
        known = (f"{name} {tuple(v.values.shape)}, {int(v.known.sum())} present" for name, v in self._given.items())
        return f"Conditions({'; '.join(known)})"

    def _each(self, change: Any) -> Conditions:
        made = object.__new__(Conditions)  # already checked
        made._given = {name: change(name, value) for name, value in self._given.items()}
        return made

    def rows(self, index: slice | Tensor) -> Conditions:
        """These rows: a slice, or int64 (n,), which may repeat."""
        return self._each(lambda _, value: value.rows(index))

    def cat(self, *others: Mapping[str, Given | Tensor]) -> Conditions:
        """These rows followed by those of others. Raises SfumatoError unless all have the same names."""
        every = [self, *map(Conditions.of, others)]
        if any(set(other) != set(self) for other in every):
            raise SfumatoError(
                f"only conditions of the same names can be concatenated, not {[sorted(other) for other in every]}"
            )
        return self._each(lambda name, _: Given.cat([other._given[name] for other in every]))

    def repeat(self, n: int) -> Conditions:
        """The whole batch n times: rows 0 1 2 0 1 2."""
        return self.cat(*[self] * (n - 1))

    def copies(self, n: int) -> Conditions:
        """Each row n times: rows 0 0 1 1 2 2."""
        return self if n == 1 else self._each(lambda _, v: Given(*(part.repeat_interleave(n, 0) for part in v)))

    def null(self, *names: str) -> Conditions:
        """The conditions with these names, by default all, absent in every row. Unknown names raise SfumatoError."""
        unknown = [name for name in names if name not in self._given]
        if unknown:
            raise SfumatoError(f"there is no condition {unknown[0]!r} here, only {', '.join(self) or 'none'}")
        return self._each(lambda name, value: value.null() if not names or name in names else value)

    def keep(self, kept: Mapping[str, Tensor]) -> Conditions:
        """Make each condition in `kept` absent where its mask, bool (B,), is False; others are unchanged."""
        return self._each(lambda name, value: value.keep(kept[name]) if name in kept else value)

    def to(self, device: torch.device | str) -> Conditions:
        return self._each(lambda _, value: value.to(device))


def require_encoded(cond: Mapping[str, Any]) -> None:
    """Raise SfumatoError, with a pointer to `resolve`, for values that are not encoded."""
    for name, value in cond.items():
        if value is not None and not isinstance(value, Given | Tensor):
            _of(name, value)  # raises


def uncarried(cond: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions without what another network carries: latents mean something to their own network alone."""
    return {name: value for name, value in cond.items() if name != CARRIED}


def _of(name: str, value: Given | Tensor) -> Given:
    try:
        return Given.of(value)
    except SfumatoError as why:
        raise SfumatoError(f"The condition {name!r}: {why}") from None


def _is_label(values: Tensor) -> bool:
    return values.ndim == 1 and not values.is_floating_point()


def absent(value: Given | Tensor) -> Given | Tensor:
    """The condition, absent in every row; a label, int64 (B,), stays a tensor."""
    if isinstance(value, Tensor) and _is_label(value):
        return torch.full_like(value, -1)
    return Given.of(value).null()


def joined(values: Sequence[Given | Tensor]) -> Given | Tensor:
    """Concatenate the rows of a condition of several batches; labels stay a tensor."""
    if all(isinstance(value, Tensor) and not value.is_floating_point() for value in values):
        return torch.cat([value for value in values if isinstance(value, Tensor)])
    return Given.cat([Given.of(value) for value in values])


def network_inputs(cond: Mapping[str, Given | Tensor | None], net: nn.Module) -> dict[str, Any]:
    """The keyword arguments of a network: name -> values, and present={name: bool (B,)} if its forward takes `present`.

    A plain tensor's mask is that of `Given.of`. Raises SfumatoError for a condition without an argument in the
    network's forward.
    """
    known = {name: value for name, value in cond.items() if value is not None}
    names, anything = _accepted(net)
    wrong = None if anything else next((name for name in known if name not in names), None)
    if wrong is not None:
        raise SfumatoError(
            f"{type(net).__name__} takes no condition {wrong!r}: give its forward an argument of this name, or leave "
            "the condition out."
        )
    require_encoded(known)
    if "present" not in names or not known:
        return {name: value.values if isinstance(value, Given) else value for name, value in known.items()}
    inputs: dict[str, Any] = {}
    present: dict[str, Tensor] = {}
    for name, value in known.items():
        if isinstance(value, Tensor) and _is_label(value):
            inputs[name], present[name] = value, value >= 0
        else:
            inputs[name], present[name] = Given.of(value)
    return inputs | {"present": present}


def _accepted(net: nn.Module) -> tuple[frozenset[str], bool]:
    """(names that a network's forward takes, whether it takes any name); looks through wrappers that pass **kwargs."""
    own = net.__dict__.get("forward")
    names, anything = _arguments(type(net).forward, 3) if own is None else _arguments(own, 2)
    inner = getattr(net, "net", getattr(net, "_orig_mod", None)) if anything and "present" not in names else None
    return _accepted(inner) if isinstance(inner, nn.Module) else (names, anything)


@lru_cache(maxsize=256)
def _arguments(forward: Any, first: int) -> tuple[frozenset[str], bool]:
    """(names of the arguments from `first` on, after input and noise level; whether there is a **kwargs)."""
    known = list(inspect.signature(forward).parameters.values())
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in known[first:] if p.kind in by_name), any(p.kind is p.VAR_KEYWORD for p in known)
