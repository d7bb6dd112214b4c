"""Losses that align a model by preferences or rewards, all made of its log-likelihood ratio to another one.

With D(x) the estimate of log p(x) / p_ref(x) by `ratio`, A the advantage of a sample and r = exp(log p / p_old):

    reward-weighted     e^(r(x) / beta) L(x), x from the reference; its optimum is the tilted law's denoiser
    dpo, ipo, kto       functions of beta D of a preferred sample and of another one
    advantage-weighted  A L(x), x from the model
    fpo                 -min(r A, clip(r, 1 - e, 1 + e) A), x from an old policy
    nft                 R |x - x_plus|^2 + (1 - R) |x - x_minus|^2, x_plus and x_minus = x_old +- b (x_hat - x_old)
    ddpo                fpo with the ratio of single steps of an ancestral walk
    direct              -r(sample), by the gradients of the sampler

D is in nats, summed over the elements of a sample, so that beta is a temperature: the optimum of the first four and of
ddpo is p_ref e^(r / beta) / Z. nft is guidance towards the rewarded set, and direct goes to the reward's mode.
Sources: 2311.12908 (DPO), 2310.12036 (IPO), 2402.01306 (KTO), 2507.21053 (FPO), 2509.25050 (advantage-weighted
matching), 2509.16117 (DiffusionNFT), 2305.13301 (DDPO), 2309.17400 and 2310.03739 (direct gradients).
"""

from __future__ import annotations

import abc
import copy
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sfumato import noise
from sfumato.belief import broadcast
from sfumato.compose import differentiable
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, suggest
from sfumato.nets.lora import plain_state
from sfumato.noise import PRIOR, STEP, Noise
from sfumato.objectives.loss import Loss
from sfumato.objectives.weights import Weight, chosen
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.reinforce.feedback import Preferences, Reward, Rollouts, require
from sfumato.reinforce.ratio import Pairs, differences
from sfumato.sampling import sample
from sfumato.state import numbers, numbers_like

DRAWS = 4  # noise levels of a sample and step, each with two opposite noises
CLIP = 0.2


class Reinforced(Loss, abc.ABC):
    """A loss with a frozen reference, the model that training starts from. weight: of the ratio (`contraction`).

    draws: noise levels of each sample in a step, with two opposite noises each. beta: the temperature in nats.
    Held-out samples are judged by the bound's integral in nats: it rises as the model leaves the reference.
    """

    def __init__(self, reference: Any, beta: float, weight: Weight | str, draws: int, seed: int) -> None:
        super().__init__()
        require(self, reference=reference)
        if not beta > 0:
            raise SfumatoError(f"beta, the temperature, must be above 0, not {beta:g}.")
        self._reference = (reference,)  # in a tuple, so that its weights are not the loss's state
        self.beta, self.weight, self.draws, self.seed = beta, chosen(weight) or torch.ones_like, draws, seed

    @property
    def reference(self) -> Any:
        return self._reference[0]

    def bound(self, model: Any, x: Tensor, cond: Conditions, index: Tensor, weight: Weight | None = None) -> Tensor:
        """The weighted bound's integral of normalised samples, (B,), in nats."""
        pairs = Pairs.of(model.process, model.process.data(x), cond, index, 1, self.draws, self.seed)
        return pairs.losses(model, weight or self.weight)[:, 0]

    def log_ratio(self, model: Any, before: Any, x: Tensor, cond: Conditions, index: Tensor) -> Tensor:
        """log p(x) / p_before(x), (B,), with the gradients of the model."""
        clean = model.process.data(x)
        found = differences(model, before, clean, cond, index, 1, self.draws, self.weight, self.seed)
        return found[:, 0]

    def held(self, model: Any, batch: Any) -> Tensor:
        return self.bound(model, batch.x, batch.cond, batch.index, torch.ones_like)

    def rows(self, index: Tensor, count: int) -> Tensor:
        """Which of `count` stored samples the samples of a batch stand for."""
        return (noise.uniform(self.seed, index, (), noise.ORDER, dtype=torch.float64) * count).long()


# -- preferences -----------------------------------------------------------------------------------------------------

FORMS = ("dpo", "ipo", "kto")


@register("loss", "dpo")
@register("loss", "ipo", form="ipo")
@register("loss", "kto", form="kto")
@final
class Preferred(Reinforced):
    """With m = D(winner) - D(loser), both under the same noise and levels:

        dpo  -log sigmoid(beta m), log 2 at the reference        ipo  (beta m - 1/2)^2
        kto  2 - sigmoid(beta (D(winner) - k)) - sigmoid(beta (k - D(loser))),  k = max(0, mean D)

    pairs: `Preferences`, which stand in for the batch's x. The noise of m shortens the margin of dpo a little: more
    draws lengthen it. For winners drawn by sigmoid(r(winner) - r(loser)) the optimum
    of dpo is p_ref e^(r / beta) / Z.
    """

    def __init__(
        self, reference: Any = None, pairs: Preferences | None = None, form: str = "dpo", beta: float = 1.0,
        weight: Weight | str = "elbo", draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, beta, weight, draws, seed)
        require(self, pairs=pairs)
        if form not in FORMS:
            raise SfumatoError(f"Unknown form {form!r} of a preference loss: {suggest(form, FORMS)}")
        self.form, self._pairs = form, (pairs,)

    def losses(self, model: Any, batch: Any) -> Tensor:
        winner, loser = self.log_ratios(model, batch)
        if self.form == "dpo":
            return -logsigmoid(self.beta * (winner - loser))
        if self.form == "ipo":
            return (self.beta * (winner - loser) - 0.5).square()
        zero = ((winner + loser) / 2).mean().detach().clamp_min(0)
        return 2 - torch.sigmoid(self.beta * (winner - zero)) - torch.sigmoid(self.beta * (zero - loser))

    def log_ratios(self, model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """D of the winners and of the losers that a batch stands for, (B,) each."""
        pairs, device = self._pairs[0], batch.x.device
        assert pairs is not None
        rows = self.rows(batch.index, len(pairs))
        cond = pairs.cond.rows(rows).to(device)
        winner, loser = (
            self.log_ratio(model, self.reference, x[rows].to(device), cond, batch.index)
            for x in (pairs.winner, pairs.loser)
        )
        return winner, loser


# -- rewards ---------------------------------------------------------------------------------------------------------


@register("loss", "reward-weighted")
@final
class RewardWeighted(Reinforced):
    """e^(r(x) / beta) / mean e^(r / beta) times the bound of x, for `samples` of the reference.

    Its optimum at every level is E[e^(r/beta) x | z] / E[e^(r/beta) | z], the denoiser of p_ref e^(r / beta) / Z, under
    any weight. What limits it is how many samples the weights are worth (`feedback.effective`).
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 4096,
        weight: Weight | str = "elbo", draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, beta, weight, draws, seed)
        require(self, reward=reward)
        assert reward is not None
        self.rollouts = Rollouts(reference, reward, samples, seed)

    def losses(self, model: Any, batch: Any) -> Tensor:
        rows = self.rows(batch.index, self.rollouts.count)
        x, cond = self.rollouts.x[rows], self.rollouts.conditions(rows)
        bound = self.bound(model, x, cond, batch.index)
        return self.rollouts.weights(self.beta)[rows].to(bound) * bound


class OnPolicy(Reinforced):
    """A loss on samples of an old policy, at first the reference, which is the model itself every `every` steps.

    advantages: (r - beta log p_old / p_ref) / beta less their mean: the gradient is that of E[r] - beta KL(p, p_ref).
    State: the old policy's weights, its samples, rewards and log ratios, and the number of steps.
    """

    kl: Tensor
    done: Tensor

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, weight: Weight | str = "elbo", draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, beta, weight, draws, seed)
        require(self, reward=reward)
        if every < 1:
            raise SfumatoError(f"every, the steps between two draws of samples, must be at least 1, not {every}.")
        assert reward is not None
        self.every = every
        self.old = copy.deepcopy(reference).requires_grad_(False)
        self.rollouts = Rollouts(reference, reward, samples, seed)
        self.register_buffer("kl", torch.zeros(samples, dtype=torch.float64))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def observe(self, batch: Any, losses: Tensor) -> None:
        self.done += 1

    def losses(self, model: Any, batch: Any) -> Tensor:
        age = int(self.done) // self.every
        if age != self.rollouts.age:
            self.renew(model, age)
        rows = self.rows(batch.index, self.rollouts.count)
        return self.error(model, rows, batch)

    @torch.no_grad()
    def renew(self, model: Any, age: int) -> None:
        """Make the model as it is now the old policy, and draw its samples."""
        state = plain_state(model.net)
        for name, old in self.old.net.named_parameters():
            old.copy_(state[name])
        self.draw(age)
        self.kl = self.divergence(torch.arange(self.rollouts.count))

    def draw(self, age: int) -> None:
        """Draw the samples of the old policy."""
        self.rollouts.renew(self.old, age)

    def divergence(self, rows: Tensor) -> Tensor:
        """log p_old / p_ref of the samples, float64 (N,), in nats."""
        found = [
            self.log_ratio(self.old, self.reference, self.rollouts.x[part], self.rollouts.conditions(part), part)
            for part in rows.split(512)
        ]
        return torch.cat(found).double()

    @property
    def advantages(self) -> Tensor:
        """Of all samples, float64 (N,)."""
        net = self.rollouts.rewards / self.beta - self.kl
        return net - net.mean()

    @abc.abstractmethod
    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        """The losses of the samples with these rows, (B,)."""

    def load(self, tensors: Any) -> None:
        super().load(tensors)
        self.rollouts.age = int(self.done) // self.every


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(log_ratio), (B,). Source: 1707.06347, Eq. 7."""
    ratio = log_ratio.clamp_max(20).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


@register("loss", "fpo")
@register("loss", "advantage-weighted", clip=None)
@final
class FlowPolicy(OnPolicy):
    """-min(r A, clip(r) A), r = exp(L_old - L) on common noise, summed over elements; 1 at the old policy.

    clip: how far r may move from 1; None takes A (L - L_old), the gradient of the policy without a ratio.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, clip: float | None = CLIP, weight: Weight | str = "elbo", draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, weight, draws, seed)
        self.clip = clip

    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        x, cond = self.rollouts.x[rows], self.rollouts.conditions(rows)
        log_ratio = self.log_ratio(model, self.old, x, cond, batch.index)
        advantage = self.advantages[rows].to(log_ratio)
        return -advantage * log_ratio if self.clip is None else clipped(log_ratio, advantage, self.clip)


@register("loss", "nft")
@final
class Negative(OnPolicy):
    """R |x - x_plus|^2 + (1 - R) |x - x_minus|^2 as bounds, x_plus and x_minus = x_old +- strength (x_hat - x_old).

    R = 1/2 + (r - mean r) / (2 spread) within 0 and 1, spread twice the standard deviation. The optimum is x_old +
    (2 / strength) E[R | z] (x_rewarded - x_old), guidance towards the samples weighted by R; beta plays no part.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, strength: float = 1.0, samples: int = 1024,
        every: int = 20, weight: Weight | str = "elbo", draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, 1.0, samples, every, weight, draws, seed)
        if not strength > 0:
            raise SfumatoError(f"strength must be above 0, not {strength:g}.")
        self.strength = strength

    def suits(self, model: Any) -> None:
        require_numbers(model, "The loss nft", "take reward-weighted or fpo")

    @property
    def optimality(self) -> Tensor:
        """R of all samples, float64 (N,)."""
        r = self.rollouts.rewards
        return (0.5 + (r - r.mean()) / (4 * r.std()).clamp_min(1e-12)).clamp(0, 1)

    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        x, cond = self.rollouts.x[rows], self.rollouts.conditions(rows)
        pairs = Pairs.of(model.process, x, cond, batch.index, 1, self.draws, self.seed)
        with torch.no_grad():
            before = self.old(pairs.z, pairs.t, **pairs.cond)
        found = model(pairs.z, pairs.t, **pairs.cond)
        plus, minus = (pairs.judged(before.lerp(found, sign * self.strength), self.weight)[:, 0] for sign in (1, -1))
        share = self.optimality[rows].to(plus)
        return share * plus + (1 - share) * minus


@register("loss", "ddpo")
@final
class StepPolicy(OnPolicy):
    """-min(r A, clip(r) A) with r the ratio of one ancestral step of the walk that made the sample, times the steps.

        log p(z_s | z_t) = -sum_d (z_s - mean(z_t))^2 / (2 std^2) + const,   eta = 1

    The log-probability is summed over the elements of a sample, and `divergence` over the steps. With eta = 1 and
    alpha(1) = 0 the walk forgets its start, without which the optimum is no tilted law. calls: of a walk; its last step
    has no noise and no ratio.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, clip: float = CLIP, calls: int = 20, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, "elbo", DRAWS, seed)
        self.clip, self.calls = clip, calls
        self.register_buffer("path", torch.zeros(0))
        self._walk()

    path: Tensor

    def suits(self, model: Any) -> None:
        require_numbers(model, "The loss ddpo", "take reward-weighted or fpo")

    @property
    def times(self) -> list[float]:
        """The times of the walk's calls, from 1 down, and its end at 0."""
        return [1 - k / self.calls for k in range(self.calls)] + [0.0]

    def draw(self, age: int) -> None:
        self.rollouts.age = age
        self._walk()

    def divergence(self, rows: Tensor) -> Tensor:
        steps = [self.step_ratio(self.old, self.reference, rows, k) for k in range(self.calls - 1)]
        return torch.stack(steps).sum(0).double()

    @torch.no_grad()
    def _walk(self) -> None:
        """Walks of the old policy, path (calls + 1, N, *shape); its samples and their rewards become the rollouts'."""
        rollouts = self.rollouts
        every = torch.arange(rollouts.count)
        index, cond = every + rollouts.age * rollouts.count, rollouts.conditions(every)
        z = self.old.process.prior(numbers(Noise(self.seed, index, PRIOR), rollouts.x.shape[1:], rollouts.x.device))
        states = [z]
        for k, (t, s) in enumerate(zip(self.times, self.times[1:], strict=False)):
            mean, std = self.old(z, t, **cond).step(s, 1.0)
            z = mean + broadcast(std, z) * numbers_like(Noise(self.seed, index, STEP, k), z)
            states.append(z)
        self.path = torch.stack(states)
        spec = getattr(self.old, "spec", None)
        rollouts.x = z
        rollouts.rewards = rollouts.reward(z.cpu() if spec is None else spec.denormalise(z.cpu())).to(z.device)

    def step_ratio(self, model: Any, before: Any, rows: Tensor, k: int) -> Tensor:
        """log p(z_s | z_t) / p_before(z_s | z_t) of step k, (B,)."""
        t, s = self.times[k], self.times[k + 1]
        z, after, cond = self.path[k, rows], self.path[k + 1, rows], self.rollouts.conditions(rows)
        with torch.no_grad():
            old, std = before(z, t, **cond).step(s, 1.0)
        mean, _ = model(z, t, **cond).step(s, 1.0)
        gap = (after - old).square() - (after - mean).square()
        return gap.flatten(1).sum(1) / (2 * std.to(gap) ** 2)

    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        step = (batch.u * (self.calls - 1)).long().clamp_max(self.calls - 2)
        advantage, found = self.advantages[rows], torch.zeros(len(rows), device=self.path.device)
        for k in step.unique().tolist():
            some = torch.nonzero(step == k)[:, 0]
            log_ratio = self.step_ratio(model, self.old, rows[some], int(k))
            losses = clipped(log_ratio, advantage[some].to(log_ratio), self.clip)
            found = found.index_copy(0, some.to(found.device), losses.to(found))
        return found * (self.calls - 1)


@register("loss", "direct")
@final
class Direct(Reinforced):
    """-r(x) / beta of samples of the model, by gradients through the last `calls` calls of its sampler (`Unrolled`).

    The reward must be differentiable. There is no divergence in it: it goes to the reward's mode, so stop it early.
    """

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, calls: int = 1, steps: int = 10,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, beta, "elbo", DRAWS, seed)
        require(self, reward=reward)
        self.reward, self.calls, self.steps = reward, calls, steps

    def suits(self, model: Any) -> None:
        require_numbers(model, "Gradients through the sampler", "take reward-weighted or fpo")

    def losses(self, model: Any, batch: Any) -> Tensor:
        assert self.reward is not None
        unrolled = differentiable(model, self.calls)
        count = len(batch.index)
        x = sample(unrolled, count, self.steps, seed=self.seed, index=batch.index, batch=count, cond=batch.cond)
        rewards = self.reward(x)
        if not rewards.requires_grad:
            raise SfumatoError(
                f"The reward {self.reward.name} has no gradient in its samples, which the loss direct needs: "
                "compute it with torch, or take reward-weighted or fpo."
            )
        return -rewards.to(batch.x.device) / self.beta
