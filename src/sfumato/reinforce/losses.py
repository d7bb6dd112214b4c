"""Losses that align a model by preferences or rewards, all made of its log-likelihood ratio to another one.

With D(x) the estimate of log p(x) / p_ref(x) by `ratio`, A the advantage of a sample and r = exp(log p / p_old):

    reward-weighted     e^(r(x) / beta) L(x), x from the reference; its optimum is the tilted law's denoiser
    dpo, ipo, kto       functions of beta D of a preferred sample and of another one
    advantage-weighted  A L(x), x from the model
    fpo                 -min(r A, clip(r, 1 - e, 1 + e) A), x from an old policy
    fpo++               the same with a ratio for each draw of the noise, and a pull in place of the clip where A < 0
    nft                 R |x - x_plus|^2 + (1 - R) |x - x_minus|^2, x_plus and x_minus = x_old +- b (x_hat - x_old)
    direct              -r(sample), by the gradients of the sampler

Losses on the steps of walks are in `walks`, those with advantages within groups in `groups`. D is in nats, summed over
the elements of a sample, so that beta is a temperature: the optimum of all but ipo, kto and the last two is
p_ref e^(r / beta) / Z. nft is guidance towards the rewarded set, and direct goes to the reward's mode.
Sources: 2311.12908 (DPO), 2310.12036 (IPO), 2402.01306 (KTO), 2507.21053 (FPO), Yi et al. 2026 (FPO++),
2509.25050 (advantage-weighted matching), 2509.16117 (DiffusionNFT), 2309.17400 and 2310.03739 (direct gradients).
"""

from __future__ import annotations

import abc
import copy
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sfumato import noise
from sfumato.compose import differentiable
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, suggest
from sfumato.nets.lora import plain_state
from sfumato.objectives.loss import Loss
from sfumato.objectives.weights import Weight, chosen
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.reinforce.control import Environment, Episodes
from sfumato.reinforce.feedback import Preferences, Reward, Rollouts, require
from sfumato.reinforce.ratio import Pairs, differences
from sfumato.sampling import sample

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
        weight: Weight | str = "elbo", draws: int = 1, seed: int = 0,
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
    State: the old policy's weights, its samples, rewards and log ratios, the number of steps and that of the round. The
    round is counted once its samples are complete, so that one that was cut short is drawn again.
    """

    plays: bool = False  # whether it also learns from episodes in an `Environment`
    kl: Tensor
    done: Tensor
    age: Tensor

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, weight: Weight | str = "elbo", draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, beta, weight, draws, seed)
        require(self, reward=reward)
        if every < 1:
            raise SfumatoError(f"every, the steps between two draws of samples, must be at least 1, not {every}.")
        self.every = every
        self.old = copy.deepcopy(reference).requires_grad_(False)
        self.rollouts = self.rolled(reference, reward, samples)
        self.register_buffer("kl", torch.zeros(self.rollouts.count, dtype=torch.float64))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    def observe(self, batch: Any, losses: Tensor) -> None:
        self.done += 1

    def losses(self, model: Any, batch: Any) -> Tensor:
        age = int(self.done) // self.every
        if age != int(self.age):
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
        self.age.fill_(age)

    def draw(self, age: int) -> None:
        """Draw the samples of the old policy."""
        self.rollouts.renew(self.old, age)

    def divergence(self, rows: Tensor) -> Tensor:
        """log p_old / p_ref of the samples, float64 (N,), in nats."""
        found = [
            self.log_ratio(self.old, self.reference, self.rollouts.x[part], self.rollouts.conditions(part), part)
            for part in rows.split(128)
        ]
        return torch.cat(found).double()

    @property
    def advantages(self) -> Tensor:
        """Of all samples, float64 (N,)."""
        return self.rollouts.relative(self.net)

    @property
    def net(self) -> Tensor:
        """r / beta - log p_old / p_ref of all samples, float64 (N,)."""
        return self.rollouts.rewards / self.beta - self.kl

    def rolled(self, policy: Any, reward: Any, samples: int) -> Rollouts:
        """Samples of a policy with their rewards, or episodes in an environment."""
        if not isinstance(reward, Environment):
            return Rollouts(policy, reward, samples, self.seed)
        if not self.plays:
            raise SfumatoError(
                f"{type(self).__name__} learns from a reward of samples: in an environment take fpo, fpo++ or "
                "advantage-weighted."
            )
        return Episodes(policy, reward, samples, self.seed)

    @abc.abstractmethod
    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        """The losses of the samples with these rows, (B,)."""

    def load(self, tensors: Any) -> None:
        super().load(tensors)
        self.rollouts.age = int(self.age)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(log_ratio), like log_ratio. Source: 1707.06347, Eq. 7."""
    ratio = log_ratio.clamp_max(20).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def asymmetric(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """`clipped` where A >= 0, and -(r A - |A| (r - 1)^2 / (2 clip)) where A < 0, like log_ratio.

    The second pulls r back from beyond 1 - clip, where clipping has no gradient. Sources: Xie et al. 2024 (2401.16025),
    simple policy optimisation; Yi et al. 2026, Flow policy gradients for robot control.
    """
    ratio = log_ratio.clamp_max(20).exp()
    pulled = advantage.abs() * (ratio - 1).square() / (2 * clip) - ratio * advantage
    return torch.where(advantage < 0, pulled, clipped(log_ratio, advantage, clip))


@register("loss", "fpo")
@register("loss", "advantage-weighted", clip=None)
@register("loss", "fpo++", each=True)
@final
class FlowPolicy(OnPolicy):
    """-min(r A, clip(r) A), r = exp(L_old - L) on common noise, summed over elements; 1 at the old policy.

    clip: how far r may move from 1; None takes A (L - L_old), the gradient of the policy without a ratio. each: FPO++,
    a ratio of each of the draws instead of one of their mean, and `asymmetric` bounds; the gradient at the old policy
    is the same. In the place of a reward it also takes an `Environment`, whose states the policy hears.
    """

    plays = True

    def __init__(
        self, reference: Any = None, reward: Reward | None = None, beta: float = 1.0, samples: int = 1024,
        every: int = 20, clip: float | None = CLIP, each: bool = False, weight: Weight | str = "elbo",
        draws: int = DRAWS, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reference, reward, beta, samples, every, weight, draws, seed)
        if each and clip is None:
            raise SfumatoError("A ratio of each draw (fpo++) needs a clip, such as 0.2.")
        self.clip, self.each = clip, each

    def error(self, model: Any, rows: Tensor, batch: Any) -> Tensor:
        x, cond = self.rollouts.x[rows], self.rollouts.conditions(rows)
        if self.each:
            assert self.clip is not None
            clean = model.process.data(x)
            draws = differences(model, self.old, clean, cond, batch.index, self.draws, 1, self.weight, self.seed)
            return asymmetric(draws, self.advantages[rows, None].to(draws), self.clip).mean(1)
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
