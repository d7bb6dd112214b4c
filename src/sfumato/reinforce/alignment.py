"""Alignment from file to file: a trained model and a reward or pairs -> a run, and what it gained and what it cost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import serialization
from sfumato.distillation import drawn
from sfumato.errors import SfumatoError, suggest, whole
from sfumato.files import write_text
from sfumato.flow_map import innermost
from sfumato.intervals import Interval, student_quantile
from sfumato.latent_diffusion import refuse_latent
from sfumato.machine import default_cpu, device_of
from sfumato.objectives.weights import Weight
from sfumato.registry import Named, make
from sfumato.reinforce.feedback import Preferences, Reward, effective
from sfumato.reinforce.losses import Preferred, Reinforced, RewardWeighted
from sfumato.reinforce.ratio import contraction, log_ratio
from sfumato.sampling import sample
from sfumato.training import Run, train
from sfumato.training.ladder import in_turn

REWARDED, PREFERRED = "reward-weighted", "dpo"  # the methods of "auto"
SAMPLES = 4096
SHOWN = 256  # samples, and pairs, of a report
DRAWN, LEVELS = 2, 8  # of each log-ratio, of which a report takes means
FILE = "alignment.json"


class Alignment(NamedTuple):
    """What aligning a model gained and cost, measured on samples of both models from the same noise.

    before, after: mean reward, None for preferences. kl: KL(model, reference) in nats, by the bounds of both on samples
    of the model. held: mean log p / p_ref of samples of the reference, which falls as the model leaves it.
    diversity: root mean square distance of two samples, in units of the reference's. margin: mean log-ratio of winners
    less that of losers; winner: of the winners alone, in nats; None for rewards. judge: (before, after) of a second
    reward that was not trained on. doubts: what speaks against the model, one sentence each.
    """

    before: Interval | None
    after: Interval | None
    kl: Interval
    held: Interval
    diversity: float
    margin: Interval | None
    winner: Interval | None
    judge: tuple[Interval, Interval] | None
    doubts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""

        def plain(value: Any) -> Any:
            if isinstance(value, Interval):
                return value.to_dict()
            return [plain(each) for each in value] if isinstance(value, tuple) else value

        return {name: plain(value) for name, value in self._asdict().items()}

    def __str__(self) -> str:
        def words(name: str, value: Interval | None, unit: str = "") -> list[str]:
            return [] if value is None else [f"{name:<22}{value.value:.4g} ({value.low:.4g} to {value.high:.4g}){unit}"]

        lines = words("reward before", self.before) + words("reward after", self.after)
        if self.judge is not None:
            lines += words("judge before", self.judge[0]) + words("judge after", self.judge[1])
        lines += words("margin of pairs", self.margin, " nats") + words("winners", self.winner, " nats")
        lines += words("KL to the reference", self.kl, " nats") + words("held-out log ratio", self.held, " nats")
        return "\n".join([*lines, f"{'diversity':<22}{self.diversity:.3g} of the reference's", *self.doubts])


class Aligned(NamedTuple):
    """A finished run and its `Alignment`, which is also in its alignment.json."""

    run: Run
    report: Alignment


@default_cpu()
def align(
    model: Any,
    reward: Callable[[Any], Any] | None = None,
    preferences: Preferences | str | os.PathLike[str] | None = None,
    method: str = "auto",
    out: str | os.PathLike[str] | None = None,
    beta: float = 1.0,
    weight: Weight | str = "elbo",
    samples: int = SAMPLES,
    judge: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> Aligned:
    """Train a model further towards p e^(reward / beta) / Z: `sf.align("runs/faces", reward=brightness, minutes=5)`.

    model: a denoiser, its file or its run. reward: a function of samples, a tensor (B, *shape) in the user's units (of
    a table a data frame), that returns B numbers (`Reward`). preferences: a file of pairs or `Preferences`, in
    the place of a reward. method: the name of a loss (`reinforce.losses`): reward-weighted, fpo, advantage-weighted,
    nft, ddpo or direct for rewards, dpo, ipo or kto for pairs; "auto" is the first of each. Arguments in parentheses:
    "fpo(every=50)". beta: the temperature, in units of the reward. weight: of the ratio (`contraction`). samples: drawn
    from the model; of on-policy methods in each round. judge: a second reward that is only measured. settings: those of
    `sf.train`.
    The run's folder holds the report as alignment.json. `sample` with the same seed shows a sample before and after.
    It is resumed by sf.resume(run, data=..., loss=...), since no file holds a reward.
    """
    start = serialization.load(model) if isinstance(model, str | os.PathLike) else model
    refuse_latent(start, "Alignment")
    reference = innermost(start).to(device_of(settings.get("device", "auto")))
    if (reward is None) == (preferences is None):
        raise SfumatoError("align learns from a reward or from preferences: pass one of the two.")
    seed, samples = settings.get("seed", 0), whole("samples", samples, least=2)
    judged = Reward(reward) if reward is not None else None
    pairs = Preferences.read(reference, preferences) if isinstance(preferences, str | os.PathLike) else preferences
    loss = loss_named(method, reference, judged, pairs, beta, weight, samples, seed)
    data, labels = drawn(reference, min(samples, SAMPLES), seed + 1, instead="align a model without it")
    run = train(data, out, labels, init=reference, loss=loss, **{"guidance": 1.0, **settings})
    second = None if judge is None else Reward(judge)
    report = compare(run.denoiser, reference, judged, pairs, beta, second, seed=seed + 2)
    report = report._replace(doubts=(*report.doubts, *of_weight(weight), *of_weights(loss)))
    write_text(run.path / FILE, json.dumps(report.to_dict(), indent=1))
    return Aligned(run, report)


def loss_named(
    method: str, reference: Any, reward: Reward | None, pairs: Preferences | None, beta: float, weight: Weight | str,
    samples: int, seed: int,
) -> Any:  # fmt: skip
    """The loss of a method, with its reference and what it learns from."""
    if method == "auto":
        method = PREFERRED if reward is None else REWARDED
    fit = [name for name, kind in _methods().items() if (kind is Preferred) == (reward is None)]
    if method.split("(")[0] not in fit:
        raise SfumatoError(
            f"There is no method {method!r} that learns from {'preferences' if reward is None else 'rewards'}: "
            f"{suggest(method, fit)}"
        )
    given = {"reference": reference, "reward": reward, "pairs": pairs, "beta": beta, "weight": weight}
    return make("loss", method, given | {"samples": samples, "seed": seed})


def _methods() -> dict[str, Any]:
    kinds = {name: getattr(kind, "func", kind) for name, kind in Named("loss").items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Reinforced)}


def of_weight(weight: Weight | str) -> list[str]:
    """Where a weight other than the ELBO's ends."""
    if weight == "elbo":
        return []
    return [
        f"The weight {weight!r} is not that of the ELBO: methods that use log-ratios end at another law, with variance "
        f"{contraction(weight):.3g} where the tilted one has 0.5 (reward -x^2/2 on N(0, 1))."
    ]


@torch.no_grad()
def compare(
    model: Any, reference: Any, reward: Reward | None = None, pairs: Preferences | None = None, beta: float = 1.0,
    judge: Reward | None = None, count: int = SHOWN, seed: int = 0,
) -> Alignment:  # fmt: skip
    """What `model` gained and cost against `reference`, by `count` samples of each from the same noise."""
    cond = in_turn(model, count)
    x, old = (sample(each, count, seed=seed, cond=cond) for each in (model, reference))
    kl, held = (
        mean_of(log_ratio(model, reference, each, DRAWN, LEVELS, seed=seed, cond=cond).value) for each in (x, old)
    )
    before, after = (None, None) if reward is None else (mean_of(reward(old)), mean_of(reward(x)))
    judged = None if judge is None else (mean_of(judge(old)), mean_of(judge(x)))
    margin = winner = None
    if pairs is not None:
        winner, margin = _of_pairs(model, reference, pairs, seed)
    diversity = spread(x) / max(spread(old), 1e-12)
    gain = None if reward is None else mean_of(reward(x) - reward(old))
    return Alignment(
        before, after, kl, held, diversity, margin, winner, judged,
        tuple(doubts(gain, kl, beta, diversity, winner, judged)),
    )  # fmt: skip


def mean_of(values: Tensor) -> Interval:
    """The mean of independent values, (B,), with its 95 % interval."""
    count, mean = len(values), float(values.mean())
    error = float(values.double().std()) / math.sqrt(count)
    half = student_quantile(0.975, count - 1) * error
    return Interval(mean, mean - half, mean + half, error)


def spread(x: Any) -> float:
    """The root mean square distance of two samples; of symbols the share of positions in which they differ."""
    values = torch.as_tensor(x).flatten(1)
    if not values.is_floating_point() and values.dtype != torch.uint8:
        return float((values[1:] != values[:-1]).double().mean())
    return float((2 * values.double().var(0).sum()).sqrt())


def _of_pairs(model: Any, reference: Any, pairs: Preferences, seed: int) -> tuple[Interval, Interval]:
    """(mean log-ratio of winners, that less the losers'), over the first SHOWN pairs under the same noise."""
    rows = torch.arange(min(SHOWN, len(pairs)))
    spec, cond = getattr(model, "spec", None), pairs.cond.rows(rows)

    def nats(x: Tensor) -> Tensor:
        users = x[rows].cpu() if spec is None else spec.denormalise(x[rows].cpu())
        return log_ratio(model, reference, users, DRAWN, LEVELS, seed=seed, cond=cond).value

    winner, loser = nats(pairs.winner), nats(pairs.loser)
    return mean_of(winner), mean_of(winner - loser)


def doubts(
    gain: Interval | None, kl: Interval, beta: float, diversity: float, winner: Interval | None,
    judged: tuple[Interval, Interval] | None,
) -> Iterator[str]:  # fmt: skip
    """What speaks against an aligned model, one sentence each.

    E[r] - beta KL is largest for the tilted law, and 0 gained is the reference: a model below it is over-optimised.
    """
    if gain is not None and gain.high < beta * kl.low:
        yield (
            f"Over-optimised: the reward rose by {gain.value:.3g}, less than beta KL = {beta * kl.value:.3g}: train "
            "for fewer steps, or with a larger beta."
        )
    if gain is not None and gain.low > 0 and judged is not None and judged[1].high < judged[0].low:
        yield (
            f"Over-optimised: the reward rose, and the judge fell from {judged[0].value:.3g} to {judged[1].value:.3g}: "
            "stop earlier, or take a larger beta."
        )
    if diversity < 0.5:
        yield f"Samples differ {diversity:.2g} times as much as those of the reference: take a larger beta."
    if winner is not None and winner.high < 0:
        yield (
            f"The preferred samples became less likely, too, by {-winner.value:.3g} nats: the margin grew because the "
            "others fell further. Train for fewer steps."
        )


def of_weights(loss: Any) -> list[str]:
    """Whether too few samples count in a reward-weighted loss."""
    if not isinstance(loss, RewardWeighted):
        return []
    worth = effective(loss.rollouts.weights(loss.beta))
    if worth > 0.05 * loss.rollouts.count:
        return []
    return [
        f"The weights e^(reward / beta) of {loss.rollouts.count:,} samples are worth {worth:.0f}: take more samples, a "
        "larger beta, or method='fpo', which draws from the model itself."
    ]
