"""A denoiser in the space of an autoencoder, whose samples are decoded to the user's units.

    y = encode(x),   z = alpha (y - m) / s + sigma eps,   x_0 = decode(m + s D(z))

m and s are the mean and deviation of the codes, channel by channel, as the denoiser's data spec holds them: they are
measured, s^2 = Var E[y|x] + E Var[y|x], and there is no scale to choose. Source: Rombach et al. 2022 (2112.10752).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sfumato.autoencoder import Codec
from sfumato.compose import Wrapped
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.model import Model, usable
from sfumato.registry import register


class Decoder:
    """The map from normalised codes to samples in user units, where other models have a `Normaliser`.

    It is differentiable, neither rounds nor clips, and is not affine.
    """

    kind = "decoder"

    def __init__(self, autoencoder: Codec, latent: DataSpec | None) -> None:
        self.autoencoder, self.latent = autoencoder, latent

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decoder) and (self.autoencoder, self.latent) == (other.autoencoder, other.latent)

    def __hash__(self) -> int:
        return hash((id(self.autoencoder), self.latent))

    def codes(self, z: Tensor) -> Tensor:
        """The codes (B, *latent_shape) of normalised ones, on the autoencoder's device; of a codebook the nearest."""
        y = z if self.latent is None else self.latent.normaliser.denormalise(z)
        y = y.to(self.autoencoder.device, self.autoencoder.net.log_variance.dtype)
        quantiser = self.autoencoder.net.quantiser
        return y if quantiser is None else quantiser(y).value

    def denormalise(self, z: Tensor) -> Tensor:
        """z (B, *latent_shape) -> the mean of x (B, *shape) given its code, in user units, float64."""
        x = self.autoencoder.net.decode(self.codes(z)).double()
        spec = self.autoencoder.spec
        return (x if spec is None else spec.normaliser.denormalise(x)).to(z.device)

    @torch.no_grad()
    def normalise(self, x: Any) -> Tensor:
        """x (B, *shape) in user units -> the normalised mean of its code (B, *latent_shape), float32, on the CPU."""
        y = self.autoencoder.encode(x).cpu()
        return y.float() if self.latent is None else self.latent.normalise(y)


class LatentSpec:
    """The data spec of a latent model: shape, kind, bounds .. of the autoencoder's data, conditions of the denoiser's.

    latent: the spec of the codes, None for codes as they are. Everything else is as in `data.DataSpec`.
    """

    def __init__(self, autoencoder: Codec, latent: DataSpec | None) -> None:
        spec = autoencoder.spec
        self.data = spec if latent is None else dataclasses.replace(spec, conditions=latent.conditions)
        self.latent, self.normaliser = latent, Decoder(autoencoder, latent)

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    def normalise(self, x: Any) -> Tensor:
        """x (B, *shape) in user units -> normalised codes (B, *latent_shape)."""
        return self.normaliser.normalise(x)

    @torch.no_grad()
    def denormalise(self, z: Tensor) -> Tensor:
        """z (B, *latent_shape) -> x (B, *shape) in the user's units and dtype, rounded and clipped as the data are."""
        found: Tensor = self.data.rounded(self.normaliser.denormalise(z))
        return found

    def log_jacobian(self, z: Tensor) -> Tensor:
        """There is none, as a code has fewer numbers than a sample."""
        raise SfumatoError(
            "The decoder of a latent model has no Jacobian: its likelihood is the bound, log_prob(.., method='elbo')."
        )


@register("model", "Latent")
class Latent(Wrapped):
    """inner(z, t): a denoiser of the normalised codes of `autoencoder`; samples are decoded to the user's units.

    It is a model like others: its states are codes (`shape`), its `spec` encodes and decodes, so that sampling,
    guidance, plans, `sf.encode` and inverse problems work as they do for pixels. Raises SfumatoError unless the codes
    have the shape of the denoiser's samples, and the autoencoder knows its data's units.
    """

    def __init__(self, inner: Model, autoencoder: Codec) -> None:
        super().__init__(usable(inner, "A latent model"))
        if not isinstance(autoencoder, Codec) or autoencoder.spec is None:
            raise SfumatoError("A latent model needs an autoencoder with a data spec: a sf.Codec(net, spec), or a run.")
        own = getattr(inner, "shape", None)
        if own is not None and tuple(own) != autoencoder.latent_shape:
            raise SfumatoError(
                f"The denoiser has samples of shape {tuple(own)}, and the autoencoder codes of shape "
                f"{autoencoder.latent_shape}: train it on the codes of this autoencoder."
            )
        self.autoencoder = autoencoder

    @property
    def spec(self) -> LatentSpec:
        return LatentSpec(self.autoencoder, getattr(self.inner, "spec", None))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a state: of one code."""
        return self.autoencoder.latent_shape

    def __call__(self, z: Tensor, t: Any, /, **cond: Any) -> Any:
        return self.inner(z, t, **cond)


def latent_of(model: Any) -> Latent | None:
    """The latent model itself or inside of wrappers; None if there is none."""
    while model is not None and not isinstance(model, Latent):
        model = getattr(model, "inner", None) if isinstance(model, Wrapped) else None
    return model


def refuse_latent(model: Any, what: str) -> None:
    """Raise SfumatoError, naming `what`, for a model in the space of an autoencoder."""
    if latent_of(model) is not None:
        raise SfumatoError(f"{what} takes a model of the data themselves, not of codes: train one without latent.")


def require_data_space(model: Any, what: str, instead: str) -> None:
    """Raise SfumatoError, naming `what` and what to take instead, for a model in the space of an autoencoder."""
    if latent_of(model) is not None:
        raise SfumatoError(f"{what} needs a density of the data, and a latent model has one of codes: {instead}.")
