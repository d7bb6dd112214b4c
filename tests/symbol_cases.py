"""A strongly dependent law of three symbols, and the laws of samplers of symbols by sums over all states."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfumato.belief import Logits
from sfumato.exact import Table
from sfumato.process import Symbols

F64 = torch.float64
TABLE = Table(torch.tensor(np.random.default_rng(0).dirichlet(np.full(27, 0.5)).reshape(3, 3, 3)))  # H = 2.8829 nats


def joined(sites: Tensor) -> Tensor:
    """The transition matrix of independent draws: (N, d, S) -> (N, S^d)."""
    whole = sites[:, 0]
    for i in range(1, sites.shape[1]):
        whole = (whole[:, :, None] * sites[:, i, None, :]).flatten(1)
    return whole


def distance(law: Tensor, process: Symbols, table: Table = TABLE) -> float:
    """The total variation of a law of noisy states, (S^d,), from the table."""
    wanted = torch.zeros_like(law)
    wanted[table.place(table.states, process.size)] = table.probs
    return float((law - wanted).abs().sum()) / 2


def sampled(
    process: Symbols, calls: int, step: Callable[[Logits, float], Tensor], table: Table = TABLE,
    between: Callable[[Logits, float], Tensor] | None = None,
) -> float:  # fmt: skip
    """The total variation of a sampler from the table.

    step: the law of each symbol at s from the belief at t; between: of another draw at s > 0, from the belief there and
    the length of the step.
    """
    states, model = table.noisy(process), table.denoiser(process)
    law = joined(process.pi.expand(1, table.dim, -1))[0]
    for t, s in itertools.pairwise([1 - k / calls for k in range(calls)] + [0.0]):
        law = law @ joined(step(model(states, t), s).nan_to_num(0.0))
        if between is not None and s > 0:
            law = law @ joined(between(model(states, s), t - s).nan_to_num(0.0))
    return distance(law, process, table)


class Independent(torch.nn.Module):
    """A network that believes in one law of each symbol, whatever the others are."""

    takes_symbols = True

    def __init__(self, law):
        super().__init__()
        self.logits = torch.nn.Parameter(law.log())

    def forward(self, z, level):
        return self.logits.expand(*z.shape, -1)
