"""Measurements y = A(x) of a sample x, in the units of the data.

    Mask(known)   some entries          Blur(width)   a convolution with a Gaussian
    Pool(k)       means of k x k        Linear(A, At) a matrix, or two functions      Map(f)   any differentiable f

An operator maps samples (B, *shape) to measurements (B, *measured). A linear one has an adjoint, which is the vector-
Jacobian product where it is not given.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import SfumatoError


class Operator(abc.ABC):
    """What is measured of a sample. linear: whether A(x) = A x + a."""

    linear: bool = True

    @abc.abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x), (B, *measured), of samples (B, *shape)."""

    def adjoint(self, u: Tensor, x: Tensor) -> Tensor:
        """A'(x)^T u, (B, *shape), of u (B, *measured)."""
        pulled: Tensor = torch.func.vjp(self.__call__, x)[1](u)[0]
        return pulled

    def observed(self, y: Tensor) -> Tensor:
        """The measurement (*measured) in what the caller has: itself, unless an operator says otherwise."""
        return y


class Mask(Operator):
    """The entries of x where `known` is true, as one vector.

    known: bool, of the shape of a sample, or one that broadcasts to it, such as (H, W) for (C, H, W). The measurement
    is given as a whole sample, of which the other entries are not read (they may be NaN), or as the vector.
    """

    def __init__(self, known: Any) -> None:
        self.known = torch.as_tensor(known).bool()
        if not bool(self.known.any()):
            raise SfumatoError("A mask without a known entry measures nothing: it is True where x is known.")

    @classmethod
    def of(cls, x: Any) -> Mask:
        """The mask of the entries of a sample (*shape) that are not NaN."""
        return cls(~torch.isnan(torch.as_tensor(x)))

    def whole(self, shape: tuple[int, ...]) -> Tensor:
        """Which entries of a sample of this shape are known, bool (*shape)."""
        try:
            return self.known.expand(shape)
        except RuntimeError:
            raise SfumatoError(f"A mask of shape {tuple(self.known.shape)} does not fit samples of {shape}.") from None

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, self.whole(tuple(x.shape[1:])).to(x.device)]

    def adjoint(self, u: Tensor, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, self.whole(tuple(x.shape[1:])).to(x.device)] = u
        return out

    def observed(self, y: Tensor) -> Tensor:
        whole = y.ndim >= max(self.known.ndim, 1) and y.shape[y.ndim - self.known.ndim :] == self.known.shape
        return y[self.whole(tuple(y.shape))] if whole else y


class Pool(Operator):
    """Means over blocks of `size` entries along each axis but the channels': (C, H, W) to (C, H / size, W / size).

    Samples (L,) of one axis are pooled along it.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise SfumatoError(f"Pool needs a size of at least 1, not {size}.")
        self.size = int(size)

    def __call__(self, x: Tensor) -> Tensor:
        first = 1 if x.ndim == 2 else 2
        if any(length % self.size for length in x.shape[first:]):
            raise SfumatoError(
                f"Samples of shape {tuple(x.shape[1:])} cannot be pooled by {self.size}: it divides not."
            )
        for axis in range(first, x.ndim):
            x = x.unflatten(axis, (-1, self.size)).mean(axis + 1)
        return x

    def adjoint(self, u: Tensor, x: Tensor) -> Tensor:
        for axis in range(1 if x.ndim == 2 else 2, x.ndim):
            u = u.repeat_interleave(self.size, axis) / self.size
        return u


class Blur(Operator):
    """Convolution with a Gaussian of standard deviation `width` entries along each axis but the channels'.

    Beyond the edge the entries are mirrored about it, so that a constant stays what it is.
    """

    def __init__(self, width: float) -> None:
        if not 0 < width < math.inf:
            raise SfumatoError(f"Blur needs a width above 0, not {width:g}.")
        self.width = float(width)

    def _matrix(self, length: int, like: Tensor) -> Tensor:
        place = torch.arange(length, dtype=torch.float64)
        reach = torch.arange(-4 * math.ceil(self.width), 4 * math.ceil(self.width) + 1, dtype=torch.float64)
        weight = torch.softmax(-0.5 * (reach / self.width) ** 2, 0)
        source = (place[:, None] + reach).long() % (2 * length)
        source = torch.where(source < length, source, 2 * length - 1 - source)
        rows = torch.zeros(length, length, dtype=torch.float64)
        return rows.scatter_add_(1, source, weight.expand(length, -1)).to(like)

    def __call__(self, x: Tensor) -> Tensor:
        for axis in range(1 if x.ndim == 2 else 2, x.ndim):
            x = (x.movedim(axis, -1) @ self._matrix(x.shape[axis], x).T).movedim(-1, axis)
        return x

    def adjoint(self, u: Tensor, x: Tensor) -> Tensor:
        for axis in range(1 if x.ndim == 2 else 2, x.ndim):
            u = (u.movedim(axis, -1) @ self._matrix(x.shape[axis], x)).movedim(-1, axis)
        return u


class Linear(Operator):
    """A x: a matrix (m, D) over the D entries of a sample, or a linear function (B, *shape) -> (B, *measured).

    At: its adjoint, (B, *measured) -> (B, *shape). A function without it has to be differentiable by torch.
    """

    def __init__(self, A: Any, At: Callable[[Tensor], Tensor] | None = None) -> None:
        self.function = A if callable(A) and not isinstance(A, Tensor | np.ndarray) else None
        self.matrix = None if self.function else torch.as_tensor(A)
        if self.matrix is not None and (self.matrix.ndim != 2 or not self.matrix.is_floating_point()):
            raise SfumatoError(f"A matrix of a measurement has shape (m, D) and real numbers, not {A!r:.80}.")
        self.transposed = At

    def __call__(self, x: Tensor) -> Tensor:
        if self.matrix is None:
            assert self.function is not None
            return self.function(x)
        if self.matrix.shape[1] != x[0].numel():
            raise SfumatoError(f"A matrix {tuple(self.matrix.shape)} does not fit samples of {x[0].numel()} numbers.")
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, u: Tensor, x: Tensor) -> Tensor:
        if self.matrix is not None:
            return (u @ self.matrix.to(x)).reshape(x.shape)
        return super().adjoint(u, x) if self.transposed is None else self.transposed(u)


class Map(Operator):
    """f(x), any function (B, *shape) -> (B, *measured) that torch can differentiate."""

    linear = False

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.function = f

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)
