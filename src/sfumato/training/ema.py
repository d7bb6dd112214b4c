"""A moving average of weights whose window is a fraction of the run so far.

    ema_n = beta_n ema_{n-1} + (1 - beta_n) theta_n,   beta_n = (n_{-}/n)^(gamma + 1)
    =>  weight of theta at samples n in the average at N:  (n/N)^(gamma+1) - (n_{-}/N)^(gamma+1)  ~  n^gamma dn

n counts samples seen, n_- those before the step; beta is 0 in the first step, so that the initial weights drop out.
The window's standard deviation relative to N is `width`: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
Source: Karras et al. 2023 (2312.02696), Eq. 124-127, the power-function average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.distributed import local
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser, with_net
from sfumato.nets.lora import trained_names

WIDEST = 12.0**-0.5  # the uniform average, gamma = 0
_NARROWEST = 1e-9  # far less than a step of any run


def exponent(width: float) -> float:
    """gamma >= 0 for which n^gamma on [0, 1] has standard deviation `width`."""
    if not _NARROWEST <= width <= WIDEST:
        raise SfumatoError(f"The width of a moving average must be from {_NARROWEST:g} to {WIDEST:.3f}, not {width}.")
    t = width**-2
    return float(max(np.roots([1, 7, 16 - t, 12 - t]).real))


class EMA:
    """The power-function average of a denoiser's weights, itself a denoiser (`ema.denoiser`).

    Averages are at least float32; buffers are copied, not averaged. Weights that are not trained are those of the
    denoiser itself: of adapters there is one copy of the base.
    """

    def __init__(self, denoiser: Denoiser, width: float, shard: Callable[[nn.Module], nn.Module] | None = None) -> None:
        """shard: shards a network in place (`parallel.sharding`), if the denoiser's network will be sharded."""
        self.power = exponent(width) + 1
        fixed = {id(p): p for p in denoiser.net.parameters() if not p.requires_grad}  # kept by deepcopy as they are
        net = copy.deepcopy(denoiser.net, fixed).requires_grad_(False).eval()
        self.denoiser, self._of = with_net(denoiser, net if shard is None else shard(net)), denoiser

    def _tensors(self) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """(averages, trained weights, pairs of buffers); for shards, the part that this process holds."""
        own, of = self.denoiser.net, self._of.net
        pairs = [(mean, p) for mean, p in zip(own.parameters(), of.parameters(), strict=True) if mean is not p]
        means, sources = ([local(pair[i].detach()) for pair in pairs] for i in (0, 1))
        return means, sources, list(zip(own.buffers(), of.buffers(), strict=True))

    @torch.no_grad()
    def update(self, before: int, after: int) -> None:
        """Average in the weights after a step from `before` to `after` samples seen."""
        beta = (before / after) ** self.power
        means, sources, buffers = self._tensors()
        torch._foreach_lerp_(means, sources, 1 - beta)
        for mean, source in buffers:
            mean.copy_(source)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the trained denoiser the averaged weights within the block; its own are restored afterwards.

        A training step within the block would train the average.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        means, sources, buffers = self._tensors()
        for mean, source in (*zip(means, sources, strict=True), *buffers):
            kept = mean.clone()
            mean.copy_(source)
            source.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of the averaged network, but for weights that are not trained."""
        names = trained_names(self.denoiser.net)
        return {name: value for name, value in self.denoiser.net.state_dict().items() if name in names}
