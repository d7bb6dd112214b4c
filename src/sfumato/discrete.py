"""A denoiser of symbols: network + uniform process; the belief p(x_i | z) about each symbol comes out.

    y = net(code(z), noise_level),   p(x_i = k | z) ~ exp(y_ik) q(z_i | x_i = k)
    code(z) = (K 1[z = k] - 1) / sqrt(K - 1) for k = 1 .. K (k = 1 alone for K = 2: -1 and 1)

The network says what the other symbols know of one; what a symbol says of itself is Bayes' rule and needs no learning.
A network of zeros is therefore the exact model of independent uniform symbols. For K = 2 it gives one number a bit, the
log-odds of 1: with that, every reverse kernel is the Bernoulli law that 1503.03585 (Section 2.2) trains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.belief import Logits
from sfumato.data import DataSpec, Normaliser
from sfumato.errors import SfumatoError
from sfumato.model import noise_level
from sfumato.process import Uniform
from sfumato.schedule import Time


def net_shape(shape: Sequence[int], states: int) -> tuple[int, ...]:
    """The shape of a network's input and output for samples (C, *spatial) of K symbols: (C, ..) or (K C, ..)."""
    return (shape[0] * (1 if states == 2 else states), *shape[1:])


def symbol_spec(spec: DataSpec) -> DataSpec:
    """The contract of data that are symbols 0 .. K-1: as it is, with a normaliser that leaves them so."""
    channels = len(spec.normaliser.mean)
    return dataclasses.replace(spec, normaliser=Normaliser((0.0,) * channels, (1.0,) * channels))


class DiscreteDenoiser(nn.Module):
    """denoiser(z, t, **cond) -> Logits, for symbols z int64 (B, *shape).

    net: as for `Denoiser`, for samples of shape `net_shape(shape, process.states)`. spec: the data's contract, kept as
    `symbol_spec` has it; None takes plain numbers 0 .. K-1.
    """

    def __init__(self, net: nn.Module, process: Uniform, spec: DataSpec | None = None) -> None:
        super().__init__()
        self.net, self.process, self.spec = net, process, None if spec is None else symbol_spec(spec)
        outer = getattr(spec, "shape", None) or self._inner(getattr(net, "shape", None))
        self.shape: tuple[int, ...] | None = None if outer is None else tuple(outer)

    def _inner(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if shape is None or self.process.states == 2:
            return shape
        if shape[0] % self.process.states:
            raise SfumatoError(
                f"A network of shape {shape} cannot tell {self.process.states} symbols: build it for "
                "discrete.net_shape(shape, states)."
            )
        return (shape[0] // self.process.states, *shape[1:])

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def symbols(self, x: Tensor) -> Tensor:
        """Data as symbols, int64, or SfumatoError where it is none."""
        whole = x.round().long() if x.is_floating_point() else x.long()
        last = self.process.states - 1
        if bool(((whole < 0) | (whole > last)).any()) or bool((whole != x).any()):
            raise SfumatoError(
                f"The data of a discrete denoiser are the whole numbers 0 to {last}; these run from {float(x.min()):g} "
                f"to {float(x.max()):g}."
            )
        return whole

    def predict(self, z: Tensor, t: Time, **cond: Any) -> Tensor:
        """What the network says of every symbol, (B, *shape, K), up to a constant."""
        keep = self.process.keep(t)
        level = noise_level(2 * torch.logit(keep)).to(z.device).expand(len(z))
        if self.process.states == 2:
            y = self.net(2.0 * z.float() - 1.0, level, **cond)
            return torch.stack((torch.zeros_like(y), y), -1)
        states = self.process.states
        hot = torch.nn.functional.one_hot(z, states).float().movedim(-1, 1)
        code = (states * hot - 1) / math.sqrt(states - 1)
        return self.net(code.flatten(1, 2), level, **cond).unflatten(1, (states, -1)).movedim(1, -1)

    def forward(self, z: Tensor, t: Time, **cond: Any) -> Logits:
        return self.process.read(self.predict(z, t, **cond), z, t)
