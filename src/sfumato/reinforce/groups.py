"""Losses whose advantages are relative to a group: samples of one condition that a policy drew in one round.

    A_i = n_i - mean of n over the group of i,   n = r / beta - log p_old / p_ref

The mean of the group takes the place of a learned value, so that what a condition is worth drops out.
Sources: Shao et al. 2024 (2402.03300), GRPO; Liu et al. 2025 (2505.05470), Flow-GRPO; Zhao et al. 2025 (2504.12216),
diffu-GRPO.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, suggest, whole
from sfumato.objectives.counts import require_masks
from sfumato.registry import register
from sfumato.reinforce.feedback import Reward, Rollouts
from sfumato.reinforce.losses import CLIP, DRAWS, OnPolicy, clipped
from sfumato.reinforce.walks import CALLS, StepPolicy

GROUP = 16
BOUNDS = ("sequence", "one-step")


def relative(values: Tensor, groups: Tensor, normalise: bool = False) -> Tensor:
    """values less the mean of their group, (N,); groups: its number for each value, int64 (N,).

    normalise: divide by the group's standard deviation, as published; the temperature is then beta times it, another
    one for each group.
    """
    count = int(groups.max()) + 1
    sizes = torch.bincount(groups, minlength=count).to(values)

    def mean(each: Tensor) -> Tensor:
        return (each.new_zeros(count).index_add(0, groups, each) / sizes.clamp_min(1))[groups]

    off = values - mean(values)
    return off / mean(off.square()).sqrt().clamp_min(1e-6) if normalise else off


def grouped(rollouts: Rollouts, group: int) -> Tensor:
    """The group of each sample, int64 (N,): `group` samples of one class, or of all where there are none.

    Classes are drawn in turn, so that a group is spread over the round.
    """
    place, classes = torch.arange(rollouts.count), rollouts.classes
    return (place // (classes * group) * classes + place % classes).to(rollouts.rewards.device)


@register("loss", "flow-grpo")
@final
class GroupPolicy(StepPolicy):
    """`StepPolicy` with advantages within groups: the ODE of sampling becomes a walk with the same marginals.

    eta = 1 walks are memoryless. Ratios are of log-probabilities in nats, summed over elements. As published the KL to
    the reference is |mean - mean_ref|^2 / (2 std^2) of each step by itself, which leaves out how a step moves the later
    ones; here it is the path's, in the advantage, and the optimum is the tilted law. normalise: see `relative`.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, group: int = GROUP, normalise: bool = False, clip: float = CLIP, calls: int = CALLS,
        eta: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, clip, calls, eta, seed)
        self.group, self.normalise = whole("group", group, least=2), normalise

    @property
    def advantages(self) -> Tensor:
        return relative(self.net, grouped(self.rollouts, self.group), self.normalise)


@register("loss", "diffu-grpo")
@final
class MaskedPolicy(OnPolicy):
    """-min(r A, clip(r) A) for masked symbols, with advantages within groups; log r by one of

        sequence   the difference of the bounds on common masks (`ratio`), the default
        one-step   sum_i log p(x_i | all masked) / p_old(x_i | all masked), as published

    One step is a mean field: the log-probability of independent symbols, which exceeds that of the sample by
    sum_i log p(x_i) - log p(x), minus the total correlation on average. It hears no reward of how symbols agree.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, group: int = GROUP, normalise: bool = False, bound: str = "sequence", clip: float = CLIP,
        draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        if bound not in BOUNDS:
            raise SfumatoError(f"Unknown bound {bound!r} of diffu-grpo: {suggest(bound, BOUNDS)}")
        super().__init__(reference, reward, beta, samples, every, "elbo", draws, seed)
        self.group, self.normalise, self.way, self.clip = whole("group", group, least=2), normalise, bound, clip

    def suits(self, model: Any) -> None:
        require_masks(model)

    @property
    def advantages(self) -> Tensor:
        return relative(self.net, grouped(self.rollouts, self.group), self.normalise)

    def log_ratio(self, model: Any, before: Any, x: Tensor, cond: Conditions, index: Tensor) -> Tensor:
        if self.way == "sequence":
            return super().log_ratio(model, before, x, cond, index)
        with torch.no_grad():
            old = one_step(before, x, cond)
        return one_step(model, x, cond) - old

    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        x, cond = self.rollouts.x[rows], self.rollouts.conditions(rows)
        log_ratio = self.log_ratio(model, self.old, x, cond, batch.index)
        return clipped(log_ratio, self.advantages[rows].to(log_ratio), self.clip)


def one_step(model: Any, x: Tensor, cond: Conditions | None = None) -> Tensor:
    """sum_i log p(x_i | all masked), (B,) in nats: the mean field of one call, no log-probability of x."""
    known = Conditions({}) if cond is None else cond
    belief = model(torch.full_like(x, model.process.mask), 1.0, **known)
    return belief.log_prob.gather(-1, x.long()[..., None]).flatten(1).sum(1)
