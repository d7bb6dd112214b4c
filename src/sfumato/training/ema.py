"""A moving average of weights whose window is a fraction of the run so far.

    ema_n = beta_n ema_{n-1} + (1 - beta_n) theta_n,   beta_n = (n_{-}/n)^(gamma + 1)
    =>  weight of theta at samples n in the average at N:  (n/N)^(gamma+1) - (n_{-}/N)^(gamma+1)  ~  n^gamma dn

n counts samples seen, n_- those before the step; the first step's beta is 0, so that the initial weights have no part.
The window's standard deviation relative to N is `width`: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
Source: Karras et al. 2023 (2312.02696), Eq. 124-127, the power-function average.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.model import Denoiser

WIDEST = 12.0**-0.5  # the uniform average, gamma = 0


def exponent(width: float) -> float:
    """gamma >= 0 with the given relative standard deviation of n^gamma on [0, 1]."""
    if not 0 < width <= WIDEST:
        raise SfumatoError(f"The width of a moving average must be above 0 and at most {WIDEST:.3f}, not {width}.")
    t = width**-2
    return float(max(np.roots([1, 7, 16 - t, 12 - t]).real))


class EMA:
    """The power-function average of a denoiser's weights, itself a denoiser (`ema.denoiser`).

    Averages are float32 at least; buffers are copied.
    """

    def __init__(self, denoiser: Denoiser, width: float) -> None:
        self.power = exponent(width) + 1
        self.denoiser = copy.copy(denoiser)
        self.denoiser._modules = {"net": copy.deepcopy(denoiser.net).requires_grad_(False).eval()}
        self._source: list[Tensor] = list(denoiser.net.parameters())
        self._mean: list[Tensor] = list(self.denoiser.net.parameters())
        self._buffers = list(zip(self.denoiser.net.buffers(), denoiser.net.buffers(), strict=True))

    @torch.no_grad()
    def update(self, before: int, after: int) -> None:
        """Take in the weights of a step that led from `before` to `after` samples seen."""
        beta = (before / after) ** self.power
        torch._foreach_lerp_(self._mean, self._source, 1 - beta)
        for mean, source in self._buffers:
            mean.copy_(source)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the trained denoiser computes with the average, whatever holds it; after it as before.

        Only the memory behind the tensors changes hands, so that neither optimiser nor average can keep what is not
        theirs, and the block may end by an error. Training steps within the block would train the average.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        pairs = [*zip(self._mean, self._source, strict=True), *self._buffers]
        for mean, source in pairs:
            mean.data, source.data = source.data, mean.data

    def state_dict(self) -> dict[str, Tensor]:
        return self.denoiser.net.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.denoiser.net.load_state_dict(state)
