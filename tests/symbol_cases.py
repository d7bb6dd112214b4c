"""A strongly dependent law of three symbols, and the laws of samplers of symbols by sums over all states."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfumato.belief import Logits
from sfumato.exact import Table
from sfumato.process import Masked, Symbols
from sfumato.solvers.reveal import Reveal, chosen

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


def revealed(table: Table, process: Masked, solver: Reveal, calls: int) -> Tensor:
    """The law of the samples of `calls` calls of an order, averaged over the orders where they are drawn."""
    states = table.noisy(process)
    masked, belief = states == process.mask, table.denoiser(process)(states, 0.5)
    law = torch.zeros(len(states), dtype=F64)
    law[-1] = 1.0  # all masks
    orders = itertools.permutations(range(table.dim))
    numbers = [torch.arange(table.dim).flip(0)] if solver.order == "left-to-right" else map(torch.tensor, orders)
    below = [(each[:, None] > each).double() for each in numbers]  # which come later
    for left in range(calls, 0, -1):
        found = torch.zeros_like(law)
        for later in below:
            rest = solver.rest(belief, masked, masked.sum(1), masked, left, calls)
            shown = chosen(solver.order, belief, masked, masked.sum(1), rest, masked.double() @ later.mT)
            sites = torch.where(
                shown[..., None], torch.nn.functional.pad(belief.prob, (0, 1)), process.hot(states, F64)
            )
            found += law @ joined(sites) / len(below)
        law = found
    return law


def path_kl(table: Table, process: Symbols, posterior: bool = False) -> Tensor:
    """int E rate dlevel + KL of the prior for each x of the table, by the trapezoidal rule in the level.

    posterior: whether the posterior is passed for what the others know.
    """
    states, count = table.noisy(process), len(table.states)
    low, high = max(-34.0, float(process.level(1.0))), 34.0
    node = torch.linspace(low, high, 160, dtype=F64)
    weight = torch.full_like(node, float(node[1] - node[0]))
    weight[0] /= 2
    x, total = table.states.repeat_interleave(len(states), 0), process.prior_kl(table.states)
    model = table.denoiser(process)
    for level, w in zip(node.tolist(), weight.tolist(), strict=True):
        t = float(process.clock.time(torch.tensor(level, dtype=F64)))
        belief = model(states, t)
        if posterior:
            belief = Logits(belief.logits, states, t, process, belief.log_prob)
        whole = belief.rows(torch.arange(len(states)).repeat(count))
        rate = process.rate(whole, x).sum(1).reshape(count, -1)
        total = total + w * (table.kernel(process, 0.0, t) * rate.nan_to_num(0.0, 0.0, 0.0)).sum(1)
    return total


class Independent(torch.nn.Module):
    """A network that believes in one law of each symbol, whatever the others are."""

    takes_symbols = True

    def __init__(self, law):
        super().__init__()
        self.logits = torch.nn.Parameter(law.log())

    def forward(self, z, level):
        return self.logits.expand(*z.shape, -1)
