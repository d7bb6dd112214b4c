"""Orthonormal bases in which covariances are diagonal: C_k = U_k diag(c_k) U_k^T.

A basis transforms vectors (B, K, D), one for each of K components, to coefficients and back, so that one Gaussian
algebra handles diagonal covariances (`Axes`), full ones (`Eigen`) and stationary fields on the torus (`Hartley`).
"""

from __future__ import annotations

import abc
import math
from typing import final

import torch
from torch import Tensor


class Basis(abc.ABC):
    """K orthonormal bases of R^D."""

    @abc.abstractmethod
    def analyse(self, y: Tensor) -> Tensor:
        """U_k^T y_k: (B, K, D) -> (B, K, D)."""

    @abc.abstractmethod
    def gather(self, c: Tensor) -> Tensor:
        """sum_k U_k c_k: (B, K, D) -> (B, D)."""

    @abc.abstractmethod
    def diagonal(self, spectrum: Tensor) -> Tensor:
        """sum_k diag(U_k diag(spectrum_k) U_k^T): (B, K, D) -> (B, D)."""

    @abc.abstractmethod
    def matrix(self, spectrum: Tensor) -> Tensor:
        """sum_k U_k diag(spectrum_k) U_k^T: (B, K, D) -> (B, D, D)."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> Basis:
        """The same basis on another device."""


@final
class Axes(Basis):
    """U = I, for diagonal covariances."""

    def analyse(self, y: Tensor) -> Tensor:
        return y

    def gather(self, c: Tensor) -> Tensor:
        return c.sum(1)

    def diagonal(self, spectrum: Tensor) -> Tensor:
        return spectrum.sum(1)

    def matrix(self, spectrum: Tensor) -> Tensor:
        return torch.diag_embed(spectrum.sum(1))

    def to(self, device: torch.device) -> Axes:
        return self


@final
class Eigen(Basis):
    """Explicit bases: `vectors` (K, D, D) with U_k in its columns."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def analyse(self, y: Tensor) -> Tensor:
        return torch.einsum("bkd,kde->bke", y, self.vectors)

    def gather(self, c: Tensor) -> Tensor:
        return torch.einsum("bke,kde->bd", c, self.vectors)

    def diagonal(self, spectrum: Tensor) -> Tensor:
        return torch.einsum("bke,kde->bd", spectrum, self.vectors**2)

    def matrix(self, spectrum: Tensor) -> Tensor:
        return torch.einsum("bke,kde,kfe->bdf", spectrum, self.vectors, self.vectors)

    def to(self, device: torch.device) -> Eigen:
        return Eigen(self.vectors.to(device))


@final
class Hartley(Basis):
    """h(x)_k = N^{-1/2} sum_n x_n (cos + sin)(2 pi k.n / size): real, orthonormal and its own inverse.

    It diagonalises every stationary covariance. shape: of the field; its last `space` dimensions are the torus, earlier
    ones (channels) are copies. Source: Bracewell 1983, "Discrete Hartley transform".
    """

    def __init__(self, shape: tuple[int, ...], space: int) -> None:
        self.shape, self.dims = shape, tuple(range(-space, 0))
        self.copies, self.size = math.prod(shape[: len(shape) - space]), math.prod(shape[len(shape) - space :])

    def analyse(self, y: Tensor) -> Tensor:
        fourier = torch.fft.fftn(y.reshape(*y.shape[:-1], *self.shape), dim=self.dims, norm="ortho")
        return (fourier.real - fourier.imag).reshape(y.shape)

    def gather(self, c: Tensor) -> Tensor:
        return self.analyse(c).sum(1)

    def diagonal(self, spectrum: Tensor) -> Tensor:
        # (cos + sin)^2 = 1 + sin(2 .), and the odd sine cancels against the even spectrum: every pixel has the mean
        mean = spectrum.sum(1).reshape(-1, self.copies, self.size).mean(-1, keepdim=True)
        return mean.expand(-1, -1, self.size).reshape(len(spectrum), -1)

    def matrix(self, spectrum: Tensor) -> Tensor:
        vectors = self.analyse(torch.eye(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device))
        return torch.einsum("bke,de,fe->bdf", spectrum, vectors, vectors)

    def to(self, device: torch.device) -> Hartley:
        return self
