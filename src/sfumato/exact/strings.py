"""A distribution of a few strings: what is missing from any part of one, by sums over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Insertions
from sfumato.errors import SfumatoError
from sfumato.exact.table import without
from sfumato.process import Deletion


@final
class Strings:
    """The distribution {(0, 1, 1): 0.2, (): 0.1, ..} of strings of `symbols` symbols, normalised to sum 1."""

    def __init__(self, probs: Mapping[tuple[int, ...], float], symbols: int) -> None:
        if not probs or min(probs.values()) < 0 or not sum(probs.values()) > 0:
            raise SfumatoError("A law of strings needs at least one, with probabilities of at least 0, not all 0.")
        if not all(0 <= symbol < symbols for string in probs for symbol in string):
            raise SfumatoError(f"The symbols of these strings must be whole numbers from 0 to {symbols - 1}.")
        self.symbols, length = symbols, max(1, *map(len, probs))
        self.states = torch.tensor([[*string, *[symbols] * (length - len(string))] for string in probs])
        weights = torch.tensor([*probs.values()], dtype=torch.float64)
        self.probs = weights / weights.sum()

    @property
    def entropy(self) -> float:
        """-sum_x p(x) log p(x), in nats."""
        return float(torch.special.entr(self.probs).sum())

    def place(self, x: Tensor) -> Tensor:
        """The index of each string x (B, L) in `states`, int64 (B,); SfumatoError for others."""
        same = (x[:, None] == self.states).all(-1)
        if not bool(same.any(1).all()):
            raise SfumatoError("A string that this law does not know has no place in it.")
        return same.byte().argmax(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, float64 (B,)."""
        return self.probs[self.place(x)].log()

    def sample(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """n strings, int64 (n, L). Row i is a function of (seed, first + i) alone."""
        u = noise.uniform(seed, torch.arange(first, first + n), (), noise.DATA, dtype=torch.float64)
        return self.states[torch.searchsorted(self.probs.cumsum(0), u, right=True).clamp_max(len(self.probs) - 1)]

    def denoiser(self, process: Deletion) -> StringsDenoiser:
        """The exact model: the mean number of symbols that are missing in each gap."""
        if process.states != self.symbols + 1:
            raise SfumatoError(f"The process has {process.states} states, and these strings need {self.symbols + 1}.")
        return StringsDenoiser(self, process)


@final
class StringsDenoiser:
    """model(z, t) -> Insertions, float64; z (B, L), t a number or (B,)."""

    exact, spec = True, None

    def __init__(self, law: Strings, process: Deletion) -> None:
        self.strings, self.process, self.shape = law, process, (law.states.shape[1],)
        self.device = torch.device("cpu")

    def __call__(self, z: Tensor, t: Any, **cond: Any) -> Insertions:
        without(cond)
        x, z_each = torch.broadcast_tensors(self.strings.states, z[:, None])
        joint = self.strings.probs.log() + self.process.log_marginal(z_each, x, t)
        weight = joint.softmax(1).nan_to_num(0.0)
        mean = torch.einsum("bn,bnlk->blk", weight, self.process.missing(x, z_each))
        return Insertions(mean.log(), z, t, self.process)
