"""Orthonormal bases of fields, one matrix along each axis: c = Q x, x = Q^T c, |c| = |x|.

    dct       c_k = s_k sum_n x_n cos(pi k (n + 1/2) / N), s_0 = sqrt(1/N), else sqrt(2/N): waves reflected at the ends
    hartley   c_k = N^{-1/2} sum_n x_n (cos + sin)(2 pi k n / N): waves on the torus, the real form of the FFT
    none      c = x
    haar, db2, sym4 ..    means of pairs and their differences, again of the means: waves that have a place
    pca       the principal components of vectors, as measured, largest first: in the place of cosines, and with their
              frequencies

The first axis, of channels, is left alone unless a matrix of its own is given; of vectors (D,) it is the only axis.
Sources: Ahmed, Natarajan and Rao 1974; Bracewell 1983; Mallat 1989 (orthogonal wavelets, by PyWavelets).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, suggest

KINDS = ("dct", "hartley", "none", "pca")
_ORTHONORMAL = 1e-6  # how far the matrix of the channels may be from an orthonormal one


def cosines(n: int) -> tuple[Tensor, Tensor]:
    """The DCT-II (n, n), float64, and the angular frequency of its rows, pi k / n."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix, math.pi * k / n


def hartley(n: int) -> tuple[Tensor, Tensor]:
    """The discrete Hartley transform (n, n), float64, and the angular frequency of its rows, 2 pi min(k, n - k) / n."""
    k = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi / n * (k[:, None] * k)
    return (angle.cos() + angle.sin()) / math.sqrt(n), 2 * math.pi / n * torch.minimum(k, n - k)


def wavelets(name: str, n: int) -> tuple[Tensor, Tensor]:
    """The transform (n, n) by an orthogonal wavelet on a circle of n places, float64, and the frequency of its rows.

    It halves as often as n has factors of 2. Rows of differences after j halvings lie in the octave from pi / 2^j to
    pi / 2^(j - 1), and have the frequency of its middle, 3/4 pi / 2^(j - 1); the means that are left have half of the
    lowest octave's lower end, or 0 where one is left. SfumatoError for an odd n, and without PyWavelets.
    """
    import pywt

    if n % 2:
        raise SfumatoError(f"Wavelets halve an axis, and one of {n} places has no half: take basis='dct'.")
    means, rows, omega = torch.eye(n, dtype=torch.float64).numpy(), [], []
    while len(means) % 2 == 0:
        means, differences = pywt.dwt(means, name, "periodization", axis=0)
        rows.append(torch.from_numpy(differences))
        omega.append(torch.full((len(differences),), 0.75 * math.pi * 2 * len(differences) / n).double())
    least = 0.0 if len(means) == 1 else math.pi / 2 * len(means) / n
    rows.append(torch.from_numpy(means))
    omega.append(torch.full((len(means),), least).double())
    return torch.cat(rows[::-1]), torch.cat(omega[::-1])


@functools.lru_cache(maxsize=32)
def _orthogonal(name: str) -> bool:
    """Whether PyWavelets knows an orthogonal wavelet of this name; False where it is not installed."""
    try:
        import pywt
    except ImportError:
        return False
    return name in pywt.wavelist(kind="discrete") and bool(pywt.Wavelet(name).orthogonal)


@dataclasses.dataclass(frozen=True)
class Basis:
    """An orthonormal basis of samples of `shape` (C, *spatial), or (D,).

    kind: dct, hartley, none or an orthogonal wavelet of PyWavelets (haar, db2, sym4, ..; extra `wavelets`), along every
    spatial axis, and along the only axis of vectors if there are no `channels`; or pca, of vectors.
    channels: an orthonormal matrix (C, C) whose rows are the directions along the first axis, as nested tuples:
    colours, or the principal components of vectors (`principal`), without which pca is none.
    """

    shape: tuple[int, ...]
    kind: str = "dct"
    channels: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(int(side) for side in self.shape)
        if not shape or min(shape) < 1:
            raise SfumatoError(f"A basis needs the shape of a sample, such as (1, 28, 28), not {self.shape}.")
        if self.kind not in KINDS and not _orthogonal(str(self.kind)):
            raise SfumatoError(
                f"There is no basis {self.kind!r}: {suggest(str(self.kind), KINDS)} Orthogonal wavelets, such as haar "
                "and db2, need PyWavelets: pip install 'sfumato[wavelets]'."
            )
        if self.kind == "pca" and len(shape) > 1:
            raise SfumatoError(f"The basis pca is one of vectors, and samples have the shape {shape}: take 'dct'.")
        channels = tuple(tuple(float(value) for value in row) for row in self.channels)
        if channels:
            matrix = torch.tensor(channels, dtype=torch.float64)
            eye = torch.eye(shape[0], dtype=torch.float64)
            if matrix.shape != eye.shape or float((matrix @ matrix.T - eye).abs().max()) > _ORTHONORMAL:
                raise SfumatoError(f"The matrix of the channels must be orthonormal, ({shape[0]}, {shape[0]}).")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "channels", channels)

    @functools.cached_property
    def _axes(self) -> tuple[tuple[int, Tensor, Tensor], ...]:
        """(axis of a batch, matrix, angular frequencies) of each axis that is transformed."""
        found = []
        if self.channels or self.kind == "pca":
            eye = torch.eye(self.shape[0], dtype=torch.float64)
            omega = math.pi / self.shape[0] * torch.arange(self.shape[0]).double() * (self.kind == "pca")
            found.append((1, torch.tensor(self.channels, dtype=eye.dtype) if self.channels else eye, omega))
        made = {"dct": cosines, "hartley": hartley}.get(self.kind, functools.partial(wavelets, self.kind))
        first = 1 if len(self.shape) > 1 or self.channels else 0
        if self.kind not in ("none", "pca"):
            found += [(axis + 1, *made(self.shape[axis])) for axis in range(first, len(self.shape))]
        return tuple(found)

    def analyse(self, x: Tensor) -> Tensor:
        """c = Q x, like x (B, *shape)."""
        for axis, matrix, _ in self._axes:
            x = (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)
        return x

    def synthesise(self, c: Tensor) -> Tensor:
        """x = Q^T c, like c (B, *shape)."""
        for axis, matrix, _ in self._axes:
            c = (c.movedim(axis, -1) @ matrix.to(c)).movedim(-1, axis)
        return c

    @functools.cached_property
    def eigenvalues(self) -> Tensor:
        """|omega|^2, omega the angular frequency per place of each coefficient, float64 (1, *shape): those of minus the
        Laplacian, 0 for a constant and along channels."""
        total = torch.zeros(1, *self.shape, dtype=torch.float64)
        for axis, _, omega in self._axes:
            total = total + omega.square().reshape([-1 if a == axis else 1 for a in range(total.ndim)])
        return total

    @property
    def frequency(self) -> Tensor:
        """|f| of each coefficient in cycles per place, (1, *shape); at most 0.5 along an axis."""
        return self.eigenvalues.sqrt() / (2 * math.pi)


def principal(x: Tensor, kind: str = "none") -> Basis:
    """The basis of the principal components along the first axis of x (n, C, *spatial) or (n, D), largest first."""
    rows = x.to(torch.float64).movedim(1, -1).reshape(-1, x.shape[1])
    vectors = torch.linalg.eigh(torch.cov(rows.T).reshape(x.shape[1], x.shape[1])).eigenvectors.flip(1).T
    return Basis(tuple(x.shape[1:]), kind, tuple(map(tuple, vectors.tolist())))
