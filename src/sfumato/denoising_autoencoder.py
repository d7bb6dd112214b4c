"""The denoising autoencoder of one noise level: D(z) reconstructs x from z ~ q(z | x), possibly through a code.

    loss = 1/2 |x - D(z)|^2,   D* = E[x | z]
    Gaussian   z = x + sigma eps:                           grad log p(z) = (D*(z) - z) / sigma^2, p the density of z
    masking    z_i = x_i, or 0 with probability `rate`:     D*_i = E[x_i | the unmasked x_j]

Sources: Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders"; 2010, JMLR 11;
Vincent 2011, "A connection between score matching and denoising autoencoders", Eq. 11.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.conditions import network_inputs
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.registry import register
from sfumato.schedules import VE

_WIDTH = 1e-6  # the range of ln sigma of the one-level schedule, negligible


class Corruption(abc.ABC):
    """A corruption q(z | x)."""

    @abc.abstractmethod
    def corrupt(self, x: Tensor, seed: int, index: Tensor) -> Tensor:
        """z like x (B, ...); row i is a function of x_i and (seed, index_i) alone."""


@register("part", "GaussianNoise")
@final
@dataclasses.dataclass(frozen=True)
class GaussianNoise(Corruption):
    """z = x + sigma eps, with the eps of `denoising_loss` for the same seed and index."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise SfumatoError(f"GaussianNoise needs sigma above 0, got {self.sigma:g}.")

    def corrupt(self, x: Tensor, seed: int, index: Tensor) -> Tensor:
        eps = noise.normal(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, device=x.device, dtype=x.dtype)
        return x + self.sigma * eps


@register("part", "Masking")
@final
@dataclasses.dataclass(frozen=True)
class Masking(Corruption):
    """Set each element of x to 0 with probability `rate`, independently."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise SfumatoError(f"Masking needs a rate between 0 and 1, got {self.rate:g}.")

    def corrupt(self, x: Tensor, seed: int, index: Tensor) -> Tensor:
        u = noise.uniform(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, device=x.device)
        return torch.where(u < self.rate, 0.0, x)


@register("model", "DenoisingAutoencoder")
@final
class DenoisingAutoencoder(nn.Module):
    """dae(z) -> D(z), like z; dae.losses(x) (B,); dae.encode(x), the code; dae.score(z) under Gaussian noise.

    net: any network of `nets`, called as net(z, level, **cond) at one level; `nets.Bottleneck` has a code. noise:
    `GaussianNoise(sigma)` or `Masking(rate)`. sigma_data: the standard deviation of the normalised data; under Gaussian
    noise the network's input is z / sqrt(sigma^2 + sigma_data^2). spec: the data spec, for training.
    """

    def __init__(self, net: nn.Module, noise: Corruption, sigma_data: float = 1.0, spec: Any = None) -> None:
        super().__init__()
        self.net, self.noise, self.sigma_data, self.spec = net, noise, float(sigma_data), spec
        self._input = (1.0, 0.0)  # c_in and the noise level input of the network
        if isinstance(noise, GaussianNoise):
            c_in, level = self.denoiser.process.scaling(1.0, torch.device("cpu"))
            self._input = (float(c_in), float(level))

    @classmethod
    def from_denoiser(cls, denoiser: Denoiser) -> DenoisingAutoencoder:
        """The Gaussian autoencoder inside a model of one level, such as `load` returns.

        Raises SfumatoError for a model with many levels.
        """
        lo, hi = denoiser.process.schedule.logsnr_range
        if denoiser.target != "x" or not hi - lo < 4 * _WIDTH:
            raise SfumatoError(
                "A denoising autoencoder has one noise level and predicts x; this denoiser has many levels or another "
                "target."
            )
        sigma = float(denoiser.process.schedule.sigma(1.0))
        return cls(denoiser.net, GaussianNoise(sigma), denoiser.sigma_data, denoiser.spec)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    @property
    def denoiser(self) -> Denoiser:
        """The same network as a `Denoiser` with z = x + sigma eps at every t, for Langevin sampling and saving.

        Raises SfumatoError if the noise is not Gaussian.
        """
        if not isinstance(self.noise, GaussianNoise):
            raise SfumatoError(
                f"{type(self.noise).__name__} defines no score: only an autoencoder of GaussianNoise is a denoiser."
            )
        schedule = VE(self.noise.sigma * (1 - _WIDTH), self.noise.sigma)
        return Denoiser(self.net, Gaussian(schedule), "x", self.sigma_data, self.spec)

    def _scaled(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The network's input: z at unit variance, and the noise level."""
        c_in, level = self._input
        return c_in * z, torch.full((len(z),), level, device=z.device)

    def forward(self, z: Tensor, **cond: Any) -> Tensor:
        """D(z), like z."""
        return self.net(*self._scaled(z), **network_inputs(cond, self.net)).to(z.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """The code (B, code) of x, clean or corrupted.

        Raises SfumatoError for a network without a code.
        """
        encode = getattr(self.net, "encode", None)
        if not callable(encode):
            raise SfumatoError(f"{type(self.net).__name__} has no code: build the autoencoder with a nets.Bottleneck.")
        return encode(self._scaled(x)[0])

    def corrupt(self, x: Tensor, seed: int = 0, index: Tensor | Sequence[int] | None = None) -> Tensor:
        """z ~ q(z | x), like x, by (seed, index); index defaults to 0..B-1."""
        return self.noise.corrupt(x, seed, torch.arange(len(x)) if index is None else torch.as_tensor(index))

    def losses(
        self,
        x: Tensor,
        z: Tensor | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
        **cond: Any,
    ) -> Tensor:
        """1/2 |x - D(z)|^2, (B,), at least float32. x (B, ...): clean, normalised; z: corrupted, by default drawn."""
        z = self.corrupt(x, seed, index) if z is None else z
        error = self(z, **cond) - x
        return 0.5 * error.to(torch.promote_types(error.dtype, torch.float32)).flatten(1).square().sum(1)

    def score(self, z: Tensor, **cond: Any) -> Tensor:
        """(D(z) - z) / sigma^2, like z: grad log p of x + sigma eps. SfumatoError if the noise is not Gaussian."""
        return self.denoiser(z, 1.0, **cond).score
