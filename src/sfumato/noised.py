"""Noised samples at known levels: numbered draws, on which models are evaluated.

    z_i = corrupt(x[row_i], t_i, eps_i),   eps_i the random numbers of (seed, index_i, role, step_i)

Each draw depends only on its own numbers, not on the batch size or the number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.conditions import Conditions
from sfumato.distributed import ALONE, World, local
from sfumato.machine import in_parts
from sfumato.noise import Noise
from sfumato.process import added, given
from sfumato.state import State, rows_of

ByName = dict[str, Tensor]


class NoisedBatch(NamedTuple):
    """Some draws: clean samples x, noise eps and state z, each (B, *shape) or a dict of such; t (B,); conditions."""

    x: State
    eps: State
    z: State
    t: Tensor
    cond: Conditions


class Noised:
    """n draws of a process: draw i takes sample row[i] of x, time t[i] and the noise of row i of `source`.

    x: clean states (N, ...); cond: their conditions; row: int64 (n,); t: (n,); source: a `Noise` of n rows; batch: the
    number of draws per model call.
    """

    def __init__(
        self, process: Any, x: State, cond: Mapping[str, Any] | None, row: Tensor, t: Tensor, source: Noise, batch: int
    ) -> None:
        self.process, self.x, self.cond, self.batch = process, x, Conditions.of(cond), batch
        self.row, self.t, self.source, self.index = row, t, source, torch.arange(len(row))

    def take(self, part: Tensor) -> NoisedBatch:
        """The draws with these numbers."""
        x, t = rows_of(self.x, self.row[part]), self.t[part]
        cond = self.cond.rows(self.row[part])
        process = given(self.process, cond)
        eps = added(process, self.source.rows(part), x)
        return NoisedBatch(x, eps, process.corrupt(x, t, eps), t, cond)

    @torch.no_grad()
    def table(self, model: Any, measure: Callable[[Tensor], ByName], world: World = ALONE) -> ByName:
        """Evaluate measure(numbers of some draws) -> {name: (B, ...)} on all draws, with the model in evaluation mode;
        returns columns, float64 (n, ...) on the CPU. world: the processes that share the work; all get all columns."""

        def own(index: Tensor) -> ByName:
            # processes that share draws or weights must make the same number of calls
            alone = world.size == 1 and not in_shards(model)
            parts = in_parts(measured, index, -(-self.batch // world.size), halve=alone)
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        def measured(part: Tensor) -> ByName:
            return {name: column.double().cpu() for name, column in measure(part).items()}

        with evaluating(model):
            columns: ByName = world.parallel_map(own, self.index)
        return columns

    def each(self, model: Any, measure: Callable[[Tensor], Tensor], world: World = ALONE) -> Tensor:
        """`table` for a single column: measure(numbers of some draws) -> (B, ...)."""
        return self.table(model, lambda part: {"": measure(part)}, world)[""]


def in_shards(model: Any) -> bool:
    """Whether each process holds only a shard of the model's weights."""
    parameters = getattr(model, "parameters", None)
    return parameters is not None and any(local(p) is not p for p in parameters())


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Set evaluation mode (no dropout) within the block, and restore each module's mode afterwards."""
    if not isinstance(model, nn.Module):
        model = getattr(model, "inner", None)
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
