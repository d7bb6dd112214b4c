"""Direct distillation on paths of the teacher that are kept: walked once, learned from again and again.

    w_k = z_k / S_k at theta_k = (1 - k / K) theta_0,   z_0 noise, z_k the teacher's solution of the ODE
    loss = mean of 2 c (sqrt(e^2 + c^2) - c) over the D numbers of e,
    e = F(z_k, t_k, t_l) - (w_l - w_k) / (theta_k - theta_l),   k < l

Few calls of a step are then the teacher's, and targets are not the student's own. A tenth of a run's samples walk paths
that are new, from their own noise, under their own conditions, and the others learn from those before, so that walking
has its share of the time whatever the run is given.
The pseudo-Huber loss is e^2 for e << c, and 2 c |e| beyond, whose least is at a median, not at a mean: where most
samples have one and the same value, such as the ground of a picture, a student that does not know has no grain.
Sources: Luhman and Luhman 2021 (2101.02388), from stored pairs of noise and sample; here from all states between, too.
Charbonnier et al. 1994, "Two deterministic half-quadratic regularization algorithms", the loss.
Samples are cut at the bounds that the data declare, as the black and white of pictures, so that beyond them a path's
end has no error: a network need not say black exactly, and nothing is left of what it says below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from sfumato import machine, noise
from sfumato.belief import broadcast
from sfumato.conditions import Conditions, Given
from sfumato.errors import SfumatoError, counted, whole
from sfumato.flow_map import FlowMap
from sfumato.objectives.adversary import Adversary
from sfumato.objectives.flow_maps import CALLS, STILL, MapLoss, Path, in_units, inside, rate, square, step
from sfumato.objectives.taught import JOINS, Teacher
from sfumato.process import given
from sfumato.process.angles import angle, moved, state, time, turn, unit
from sfumato.registry import register
from sfumato.state import numbers_like

_TOGETHER = 32  # paths that are walked at once, which takes less time than as many alone


@register("loss", "path-distillation")
@final
class PathDistillation(MapLoss):
    """The error of F(z_k, t_k, t_l), from (w_l - w_k) / (theta_k - theta_l), on kept paths of the teacher.

    paths: how many are kept at most, in memory and in checkpoints; more of them are learned less by heart. every: one
    sample of so many walks a new one, 32 in a row. steps: K, between which states are kept, of one call of the teacher
    each (the two-step Adams-Bashforth method in theta). calls: pairs of states are a step of one of these numbers of
    equal calls, as far as they divide K, each number as often as its steps are long, as one call from noise is harder
    than each of two. huber: c; 0 is the square.
    adversary: the size of the gradient of an `Adversary` of the samples, of pictures by a U-Net, in that of this error,
    in the mean over a batch; 0 for none. It joins after `alone` samples, little by little in a quarter as many, and
    takes `turns` steps for each of the student's.
    """

    settings: ClassVar[dict[str, Any]] = {"lr": 1.8e-3, "batch": 32, "drop": 0.05}
    rate = 0.5

    def __init__(
        self, teacher: Teacher | None = None, paths: int = 4096, every: int = 10, steps: int = 8,
        calls: tuple[int, ...] = CALLS, seed: int = 0, huber: float = 0.01, adversary: float = 0.0, alone: int = JOINS,
        turns: int = 2,
    ) -> None:  # fmt: skip
        super().__init__(teacher, diagonal=0.0, calls=calls, seed=seed)
        self.count, self.steps = whole("paths", paths, least=1), whole("steps", steps, least=1)
        self.every, self.alone, self.turns = (
            whole(name, value, least=least)
            for name, value, least in (("every", every, 1), ("alone", alone, 0), ("turns", turns, 1))
        )
        self.huber, self.adversary = float(huber), float(adversary)
        if self.huber and not 1e-6 <= self.huber <= 1e6:
            raise SfumatoError(
                "huber is the error from which the loss grows linearly, 0 for never or from 1e-6 to 1e6, not "
                f"{huber!r:.60}."
            )
        if not 0 <= self.adversary <= 100:
            raise SfumatoError(
                f"adversary is the share of the error's gradient, 0 for none or up to 100, not {adversary!r:.60}."
            )
        self.judge: Adversary | None = None
        self._kept: dict[str, Tensor] = {}  # "w" (paths, K + 1, ...), "known" (paths,), conditions and their presence

    def suits(self, model: Any) -> None:
        super().suits(model)
        if self.teacher is None:
            raise SfumatoError("The paths are a teacher's: pass teacher=.")
        states, numbers = self.steps + 1, math.prod(getattr(model, "shape", None) or ())
        what = f"{counted(self.count, 'path')} of {states} states of {counted(numbers, 'number')}"
        machine.affordable(4.0 * self.count * states * numbers, what, "set paths= to fewer.")
        if self.adversary and self.judge is None:
            self.judge = Adversary(self.teacher, self.seed)

    def players(self) -> Iterable[nn.Parameter]:
        return () if self.judge is None else self.judge.parameters()

    def losses(self, model: FlowMap, batch: Any) -> Tensor:
        if batch.world.size > 1:
            raise SfumatoError("Paths are kept in one process: take direct-distillation in several.")
        which = self._which(batch.index)
        self._walk_new(model, which, batch)
        k, end = self._ends(batch.index)
        w, cond = self._kept["w"], self._conditions(which)
        first, last = (w[which, at].to(batch.x) for at in (k, end))
        theta, s_theta = (self._angle(model, at) for at in (k, end))
        t, s = (time(model.process, each) for each in (theta, s_theta))
        z = state(model.process, first, t)
        mean = model.mean(z, t, s, **cond.to(z.device))
        distance = broadcast(turn(model.process, t) - turn(model.process, s), first)
        ours, theirs = (self._cut(model, each, end == self.steps) for each in (first + distance * mean, last))
        error = (ours - theirs) / distance.clamp_min(STILL)
        found = pseudo_huber(in_units(model.process, error), self.huber)
        if self.judge is None or not mean.requires_grad:
            return found
        return found + self._pull(model, found, mean, (ours, theirs), batch.index, cond)

    def _pull(
        self, model: FlowMap, found: Tensor, mean: Tensor, ends: tuple[Tensor, Tensor], index: Tensor, cond: Conditions
    ) -> Tensor:  # fmt: skip
        """0, whose gradient in the means is the adversary's, `adversary` times as large as that of the losses found, by
        what both were in the step before.

        ends: w of the student and the teacher at the ends of the paths.
        """
        assert self.judge is not None
        rows = self._judged(index)
        if not len(rows):
            return torch.zeros_like(found)
        self.beside(mean)
        index, cond = index[rows], cond.rows(rows)
        x, theirs = (state(model.process, each[rows], 0.0) for each in ends)
        (own,) = torch.autograd.grad(found.sum(), mean, retain_graph=True)
        pull = self.judge.pull(x, theirs, index, self.seed, cond.to(x.device))
        (pull,) = torch.autograd.grad(x, mean, pull, retain_graph=True)
        self.judge.measure(own[pull.flatten(1).any(1)], pull)  # of the paths that end at data
        joined = ((index + 1 - self.alone) / max(1, self.alone / 4)).clamp(0, 1)
        strength = torch.zeros_like(found).index_copy(0, rows.to(found.device), self.adversary * joined.to(found))
        part = strength * self.judge.ratio.to(mean) * (pull * mean).flatten(1).sum(1)
        return part - part.detach()

    def player_losses(self, model: FlowMap, batch: Any) -> Tensor:
        """Those of the adversary, 0 of paths that do not end at data, (B,)."""
        assert self.judge is not None
        found, rows = torch.zeros(len(batch.x), device=batch.x.device), self._judged(batch.index)
        if not len(rows):
            return found + 0 * sum(each.sum() for each in self.players())
        losses = self.judge.losses(batch.index[rows])
        return found.index_copy(0, rows.to(found.device), losses.to(found))

    def observe(self, batch: Any, losses: Tensor) -> None:
        if self.judge is not None:
            self.judge.end()

    def _cut(self, model: FlowMap, w: Tensor, ends: Tensor) -> Tensor:
        """w (B, ...), of the paths that end at data cut as samples are."""
        process: Any = model.process
        x = process.data(inside(model, process.table(state(process, w, 0.0))))
        return torch.where(broadcast(ends, w).bool(), unit(process, x, 0.0), w)

    def _judged(self, index: Tensor) -> Tensor:
        """The places of the samples of the run that the adversary sees: paths that end at data."""
        return torch.nonzero((self._ends(index)[1] == self.steps) & (index >= self.alone))[:, 0]

    def error(self, model: FlowMap, path: Path) -> Tensor:
        """Of a path that is not kept, which the teacher walks in K steps of Heun: the error of direct distillation."""
        s = time(model.process, path.end)
        with torch.no_grad():
            target = step(self.guide(model, path.z), path.z, path.t, s, self.steps, **path.cond)
        return square(model.mean(path.z, path.t, s, **path.cond) - target, model.process)

    def _which(self, index: Tensor) -> Tensor:
        """The path of each sample of the run: its own, or one of those before."""
        block, place = index // (_TOGETHER * self.every), index % (_TOGETHER * self.every)
        own, known = block * _TOGETHER + place, ((block + 1) * _TOGETHER).clamp(max=self.count)
        u = noise.uniform(self.seed, index, (), noise.TRAIN_TIME, 1, dtype=torch.float64)
        return torch.where((place < _TOGETHER) & (own < self.count), own, (u * known).long())

    def _angle(self, model: FlowMap, k: Tensor) -> Tensor:
        return angle(model.process, 1.0) * (1 - k.double() / self.steps)

    def _ends(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(k, l), int64 (B,), of the two states of each sample of the run."""
        u = noise.uniform(self.seed, index, (2,), noise.TRAIN_TIME, dtype=torch.float64)
        several = torch.tensor([each for each in self.calls if self.steps % each == 0] or [1])
        until = (1 / several.double()).cumsum(0)
        calls = several[torch.searchsorted(until, u[:, 0] * until[-1], right=True).clamp(max=len(several) - 1)]
        first, long = (u[:, 1] * calls).long(), self.steps // calls
        return first * long, (first + 1) * long

    def _walk_new(self, model: FlowMap, which: Tensor, batch: Any) -> None:
        """Walk the paths among these that are not yet kept, each under the conditions of its first sample."""
        known = self._kept.get("known", torch.zeros(0, dtype=torch.bool))
        rows = torch.nonzero(~nn.functional.pad(known, (0, self.count - len(known)))[which])[:, 0]
        again = (which[rows, None] == which[rows]).tril(-1).any(1)
        if len(rows := rows[~again]):
            self._walk(model, which[rows], batch.cond.rows(rows), batch.x[rows])

    def _walk(self, model: FlowMap, which: Tensor, cond: Conditions, like: Tensor) -> None:
        """Walk these paths of the teacher, and keep them."""
        eps = numbers_like(noise.Noise(self.seed, which, noise.TRAIN_NOISE), like)
        z = given(model.process, cond).prior(eps)
        self._keep("w", which, self._states(model, z, cond).cpu())
        for name in cond:
            told = cond.given(name)
            self._keep(f"cond.{name}", which, told.values.cpu())
            self._keep(f"present.{name}", which, told.present.cpu())
        self._keep("known", which, torch.ones(len(which), dtype=torch.bool))

    def solve(self, model: FlowMap, z: Tensor, cond: Conditions) -> Tensor:
        """By the steps of the paths, which take a quarter of the calls of Heun's."""
        return state(model.process, self._states(model, z, cond)[:, -1], 0.0)

    @torch.no_grad()
    def _states(self, model: FlowMap, z: Tensor, cond: Conditions) -> Tensor:
        """w of the teacher's path from z at t = 1, (B, K + 1, ...)."""
        process, teacher = model.process, self.guide(model, z)
        t = torch.ones(len(z), dtype=torch.float64)
        states, before = [unit(process, z, t)], None
        for k in range(1, self.steps + 1):
            s = time(process, self._angle(model, torch.full((len(z),), k)))
            slope = rate(teacher, z, t, **cond)
            mean = slope if before is None else (3 * slope - before) / 2
            z, t, before = moved(process, z, t, s, mean), s, slope
            states.append(unit(process, z, t))
        return torch.stack(states, 1)

    def _keep(self, name: str, which: Tensor, value: Tensor) -> None:
        held = self._kept.setdefault(name, value.new_zeros((0, *value.shape[1:])))
        if held.shape[1:] != value.shape[1:]:
            raise SfumatoError("Conditions of several lengths are not kept with a path: take direct-distillation.")
        if (last := int(which.max())) >= len(held):
            size = min(self.count, max(last + 1, 2 * len(held)))
            self._kept[name] = held = torch.cat((held, value.new_zeros((size - len(held), *value.shape[1:]))))
        held[which] = value

    def _conditions(self, which: Tensor) -> Conditions:
        names = [name.removeprefix("cond.") for name in self._kept if name.startswith("cond.")]
        return Conditions(
            {each: Given(self._kept[f"cond.{each}"][which], self._kept[f"present.{each}"][which]) for each in names}
        )

    def tensors(self) -> dict[str, Tensor]:
        known = self._kept.get("known")
        walked = 0 if known is None else int(torch.nonzero(known).max()) + 1
        return {**{name: held[:walked] for name, held in self._kept.items()}, **self.state_dict()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        self.load_state_dict({name: tensors[name] for name in own})
        self._kept = {name: value.clone() for name, value in tensors.items() if name not in own}


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """The mean of 2 c (sqrt(e^2 + c^2) - c) over the elements e of each sample, of e^2 for c = 0, (B,)."""
    if c == 0:
        return square(error)
    # e^2 / (sqrt(e^2 + c^2) + c) is the same without cancellation
    return (2 * c * error.square() / ((error.square() + c * c).sqrt() + c)).flatten(1).mean(1)
