"""Losses on the steps of the stochastic walks that make a model's samples.

    z_s = mean(z_t, x_hat) + std n,   log p(z_s | z_t) = -sum_d (z_s - mean)^2 / (2 std^2) + const

    ddpo                fpo with the ratio of one step
    adjoint-matching    |mean - mean_ref - std^2 a_s|^2 / (2 std^2), a the lean adjoint of the reward along the walk

Log-probabilities are summed over the elements of a sample. With eta = 1 and alpha(1) = 0 the walk forgets its start:
the law of its end is then the tilted law where the path measure is tilted. A walk that keeps a correlation rho with its
start ends elsewhere: the tilt cannot move the prior.
Sources: Black et al. 2023 (2305.13301), DDPO; Domingo-Enrich et al. 2024 (2409.08861), adjoint matching.
"""

from __future__ import annotations

import abc
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import broadcast
from sfumato.belief.estimate import ancestral
from sfumato.errors import SfumatoError
from sfumato.noise import PRIOR, STEP, Noise
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.reinforce.feedback import Reward
from sfumato.reinforce.losses import CLIP, DRAWS, OnPolicy, clipped
from sfumato.schedule import as_time
from sfumato.state import numbers, numbers_like

CALLS = 20  # of a walk
_PART = 512  # walks whose Jacobians are in memory at once


class Walked(OnPolicy):
    """A loss on single steps of walks of the old policy, one step of each sample of a batch at a time.

    calls: of a walk; its last step has no noise, and is not trained on. eta: the share of noise of a step, 1 for an
    ancestral walk. path: the states, (calls + 1, N, *shape), the last of which are the samples.
    """

    path: Tensor

    def __init__(
        self, reference: Any, reward: Reward | None, beta: float, samples: int, every: int, calls: int, eta: float,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, "elbo", DRAWS, seed)
        if calls < 2 or not 0 < eta <= 1:
            raise SfumatoError(f"A walk with noise needs calls >= 2 and 0 < eta <= 1, not {calls} and {eta:g}.")
        self.calls, self.eta = calls, eta
        self.register_buffer("path", torch.zeros(0))
        self.walk(0)

    def suits(self, model: Any) -> None:
        require_numbers(model, "A loss on the steps of a walk", "take reward-weighted or fpo")

    @property
    def times(self) -> list[float]:
        """The times of the walk's calls, from 1 down, and its end at 0."""
        return [1 - k / self.calls for k in range(self.calls)] + [0.0]

    def draw(self, age: int) -> None:
        self.walk(age)

    @torch.no_grad()
    def walk(self, age: int) -> None:
        """Walks of the old policy; their ends and the rewards of these become the rollouts'."""
        rollouts = self.rollouts
        every = torch.arange(rollouts.count)
        index, cond = every + age * rollouts.count, rollouts.conditions(every)
        z = self.old.process.prior(numbers(Noise(self.seed, index, PRIOR), rollouts.x.shape[1:], rollouts.x.device))
        states = [z]
        for k, (t, s) in enumerate(zip(self.times, self.times[1:], strict=False)):
            mean, std = self.transition(self.old(z, t, **cond), s)
            z = mean + broadcast(std, z) * numbers_like(Noise(self.seed, index, STEP, k), z)
            states.append(z)
        spec = getattr(self.old, "spec", None)
        rewards = rollouts.reward(z.cpu() if spec is None else spec.denormalise(z.cpu())).to(z.device)
        self.path, rollouts.x, rollouts.rewards, rollouts.age = torch.stack(states), z, rewards, age

    def transition(self, belief: Any, s: float) -> tuple[Tensor, Tensor]:
        """(mean, std) of z_s: the ancestral step, with the variance that x has of data of variance 1.

        Taking x_hat for x shrinks the law, of N(0, 1) in 20 calls to a variance of 0.75; with the variance
        of x it is exact for N(0, 1). The two are the choices of Ho et al. 2020 (2006.11239), Section 3.2.
        """
        mean, std = belief.step(s, self.eta)
        if s == 0:
            return mean, std
        (alpha, sigma), (alpha_s, sigma_s) = (belief.alpha, belief.sigma), belief.schedule(as_time(s))
        share = self.eta * ancestral(alpha, sigma, alpha_s, sigma_s, self.eta).x
        return mean, (std**2 + share**2 * sigma**2 / (alpha**2 + sigma**2)).sqrt()

    def step_ratio(self, model: Any, before: Any, rows: Tensor, k: int) -> Tensor:
        """log p(z_s | z_t) / p_before(z_s | z_t) of step k, (B,)."""
        t, s = self.times[k], self.times[k + 1]
        z, after, cond = self.path[k, rows], self.path[k + 1, rows], self.rollouts.conditions(rows)
        with torch.no_grad():
            old, std = self.transition(before(z, t, **cond), s)
        mean, _ = self.transition(model(z, t, **cond), s)
        gap = (after - old).square() - (after - mean).square()
        return gap.flatten(1).sum(1) / (2 * std.to(gap) ** 2)

    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        step = (batch.u * (self.calls - 1)).long().clamp_max(self.calls - 2)
        found = torch.zeros(len(rows), device=self.path.device)
        for k in step.unique().tolist():
            some = torch.nonzero(step == k)[:, 0]
            losses = self.of_step(model, rows[some], int(k))
            found = found.index_copy(0, some.to(found.device), losses.to(found))
        return found * (self.calls - 1)

    @abc.abstractmethod
    def of_step(self, model: Any, rows: Tensor, k: int) -> Tensor:
        """The losses of step k of the walks with these rows, (B,)."""


@register("loss", "ddpo")
class StepPolicy(Walked):
    """-min(r A, clip(r) A) with r the ratio of one step of the walk that made the sample, times the steps.

    The divergence from the reference in A is the log ratio of the whole path.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, clip: float = CLIP, calls: int = CALLS, eta: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, calls, eta, seed)
        self.clip = clip

    def divergence(self, rows: Tensor) -> Tensor:
        steps = [self.step_ratio(self.old, self.reference, rows, k) for k in range(self.calls - 1)]
        return torch.stack(steps).sum(0).double()

    def of_step(self, model: Any, rows: Tensor, k: int) -> Tensor:
        log_ratio = self.step_ratio(model, self.old, rows, k)
        return clipped(log_ratio, self.advantages[rows].to(log_ratio), self.clip)


@register("loss", "adjoint-matching")
@final
class AdjointMatching(Walked):
    """|mean(z_t) - mean_ref(z_t) - std^2 a_s|^2 / (2 std^2), summed over elements, times the steps, with

        a_0 = grad r(x) / beta,   a_t = (d mean_ref / d z_t)^T a_s

    the lean adjoint by products with the reference's Jacobian. For Gaussian steps the gradient of V(z_t) =
    log E[e^(r / beta) | z_t] is the mean of a_t over the tilted walk, and the tilted mean is mean_ref + std^2 E[a_s],
    so that the optimum is the tilted law without any ratio. Needs a reward with gradients, and eta = 1.
    Source: 2409.08861, Eq. 37-39, for steps of any length.
    """

    adjoint: Tensor

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 10, calls: int = CALLS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, calls, 1.0, seed)
        self.register_buffer("adjoint", torch.zeros(0))
        self.solve()

    def draw(self, age: int) -> None:
        super().draw(age)
        self.solve()

    def divergence(self, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), dtype=torch.float64)  # it plays no part

    def solve(self) -> None:
        """a of all states of the path but the first, (calls, N, *shape)."""
        last = self._of_reward()
        parts = torch.arange(self.rollouts.count).split(_PART)
        self.adjoint = torch.cat([self._back(rows, last[rows]) for rows in parts], 1)

    def _back(self, rows: Tensor, last: Tensor) -> Tensor:
        """a along the walks with these rows, from that of their ends, (calls, B, *shape)."""
        found, cond = [last], self.rollouts.conditions(rows)
        for k in range(self.calls - 1, 0, -1):
            with torch.enable_grad():
                z = self.path[k, rows].detach().requires_grad_()
                mean, _ = self.transition(self.reference(z, self.times[k], **cond), self.times[k + 1])
                found.append(torch.autograd.grad(mean, z, found[-1])[0])
        return torch.stack(found[::-1])

    def _of_reward(self) -> Tensor:
        """grad r / beta in the normalised samples, like them; values are not rounded to the user's type."""
        spec, reward = getattr(self.old, "spec", None), self.rollouts.reward
        with torch.enable_grad():
            x = self.path[-1].detach().cpu().requires_grad_()
            rewards = reward(x if spec is None else spec.normaliser.denormalise(x))
            if not rewards.requires_grad:
                raise SfumatoError(
                    f"The reward {reward.name} has no gradient in its samples, which adjoint-matching needs: compute "
                    "it with torch, or take reward-weighted or fpo."
                )
            (slope,) = torch.autograd.grad(rewards.sum(), x)
        return (slope / self.beta).to(self.path)

    def of_step(self, model: Any, rows: Tensor, k: int) -> Tensor:
        t, s = self.times[k], self.times[k + 1]
        z, cond = self.path[k, rows], self.rollouts.conditions(rows)
        with torch.no_grad():
            aim, std = self.transition(self.reference(z, t, **cond), s)
            aim = aim + broadcast(std**2, z) * self.adjoint[k, rows]
        mean, _ = self.transition(model(z, t, **cond), s)
        return (mean - aim).square().flatten(1).sum(1) / (2 * std.to(mean) ** 2)
