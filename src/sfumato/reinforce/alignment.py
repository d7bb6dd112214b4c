"""Alignment from file to file: a trained model and a reward or pairs -> a run, and what it gained and what it cost."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import folder, serialization
from sfumato.diagnostics import summary
from sfumato.distributed import leads
from sfumato.errors import SfumatoError, suggest, whole
from sfumato.files import write_text
from sfumato.flow_map import innermost
from sfumato.intervals import Interval, student_quantile
from sfumato.latent_diffusion import refuse_latent
from sfumato.machine import default_cpu, device_of
from sfumato.objectives.weights import Weight
from sfumato.registry import Named, make
from sfumato.reinforce.control import STATE, Environment, play
from sfumato.reinforce.feedback import Preferences, Reward, RewardError, effective
from sfumato.reinforce.losses import Preferred, Reinforced, RewardWeighted
from sfumato.reinforce.ratio import contraction, log_ratio, path_kl
from sfumato.sampling import sample
from sfumato.training import Run, config, train
from sfumato.training import resume as train_on
from sfumato.training.ladder import in_turn
from sfumato.training.precision import compute_dtype
from sfumato.training.session import Session
from sfumato.training.teacher_samples import drawn

REWARDED, PREFERRED, PLAYED = "reward-weighted", "dpo", "fpo"  # the methods of "auto"
HELD = 512  # that the run counts as its data, which number its steps and are held out
SHOWN = 256  # samples, and pairs, of a report
DRAWN, LEVELS = 2, 8  # of each log-ratio and KL, of which a report takes means
LR = 5e-5  # of 2e-4 most of the way from the demo's network was its own wandering; at 4e-3 3 steps went 190 nats
REWARD_SECONDS = 600.0  # that a call of a reward may take
FILE, AIM, REFERENCE = "alignment.json", "aim.json", "reference.safetensors"  # their names within a run folder
MEMORY = "(in memory)"  # in AIM, what only the caller has


class Alignment(NamedTuple):
    """What aligning a model gained and cost, measured on samples of both models from the same noise.

    before, after: mean reward, None for preferences. kl: KL(model, reference) of their reverse walks in nats, on
    samples of the model (`path_kl`). held: mean log p / p_ref of samples of the reference, which falls as the model
    leaves it. diversity: root mean square distance of two samples, in units of the reference's. margin: mean log-ratio
    of winners less that of losers; winner: of the winners alone, in nats; None for rewards. judge: (before, after) of a
    second reward that was not trained on. doubts: what speaks against the model, one sentence each.
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
    reward: Callable[[Any], Any] | Environment | str | None = None,
    preferences: Preferences | str | os.PathLike[str] | None = None,
    method: str = "auto",
    out: str | os.PathLike[str] | None = None,
    beta: float = 1.0,
    weight: Weight | str = "elbo",
    samples: int | None = None,
    judge: Callable[[Any], Any] | str | None = None,
    reward_seconds: float | None = REWARD_SECONDS,
    **settings: Any,
) -> Aligned:
    """Train a model further towards p e^(reward / beta) / Z: `sf.align("runs/faces", reward=brightness, minutes=5)`.

    model: a denoiser, its file or its run. reward: a function of samples, a tensor (B, *shape) in the user's units (of
    a table a data frame), that returns B numbers (`Reward`), or its name, "my_reward.py:brightness"; or an
    environment in which the model is the policy (`reinforce.control`). preferences: a file of pairs or `Preferences`,
    in the place of a reward. method: the name of a loss: for rewards reward-weighted, fpo, fpo++, advantage-weighted,
    nft, direct (`reinforce.losses`), ddpo, adjoint-matching (`reinforce.walks`), flow-grpo or diffu-grpo
    (`reinforce.groups`), for pairs dpo, ipo or kto; "auto" is the first of each, and fpo in an environment. Arguments
    in parentheses: "fpo(every=50)". beta: the temperature, in units of the reward. weight: of the ratio
    (`contraction`). samples: drawn from the model, by default 4,096, or 1,024 in each round of an on-policy method.
    judge: a second reward that is only measured. reward_seconds: how long a call of either may take, None for any time.
    settings: those of `sf.train`, with lr=5e-5 by default. The run's folder holds the report as alignment.json.
    `sample` with the same seed shows a sample before and after.
    A run that was stopped, or whose reward failed, goes on with `resume`.
    """
    start = serialization.load(model) if isinstance(model, str | os.PathLike) else model
    refuse_latent(start, "Alignment")
    reference = frozen(start, settings.get("device", "auto"), settings.get("precision", "auto"))
    seed, samples = settings.get("seed", 0), None if samples is None else whole("samples", samples, 2)
    aim = Aim(reward, preferences, judge, method, beta, weight, samples, seed, reward_seconds)
    goal = Goal(aim, reference)
    with _kept(settings.pop("on_start", None), lambda path: aim.write(path, reference)) as begin:
        given = {"guidance": 1.0, "lr": LR, **settings, "init": reference, "loss": goal.loss, "on_start": begin}
        run = train(goal.data, out, goal.labels, **given)
    return Aligned(run, goal.report(run))


@default_cpu()
def resume(
    run: str | os.PathLike[str],
    reward: Callable[[Any], Any] | Environment | str | None = None,
    preferences: Preferences | str | os.PathLike[str] | None = None,
    judge: Callable[[Any], Any] | str | None = None,
    **changes: Any,
) -> Aligned:
    """Go on with a run of `align` from its last checkpoint, exactly as if it had not stopped, to its report.

    reward, preferences, judge: needed if they were functions and pairs in memory; others are found by their names.
    changes: as those of `sf.resume`. Of a run whose training is complete only a missing report is written.
    """
    path = folder.existing(run)
    aim = Aim.read(path, reward=reward, preferences=preferences, judge=judge)
    settings = config.from_yaml(str(path / "config.yaml")).replace(
        **{name: changes[name] for name in changes.keys() & {"device", "precision"}}
    )
    goal = Goal(aim, frozen(serialization.load(path / REFERENCE), settings.device, settings.precision))
    if not changes.keys() - {"console", "on_start"} and not (path / FILE).exists() and not summary.missing(path):
        lines = folder.read(path / "metrics.jsonl")
        done = Run(path, serialization.load(path), config.from_yaml(str(path / "config.yaml")), lines)
        return Aligned(done, goal.report(done))
    with _kept(changes.pop("on_start", None), lambda path: None) as begin:
        done = train_on(path, data=goal.data, labels=goal.labels, loss=goal.loss, on_start=begin, **changes)
    return Aligned(done, goal.report(done))


def frozen(model: Any, device: Any, precision: str) -> Any:
    """The reference: a model that computes as the run does, so that their ratio is 1 at first, and as fast."""
    device = device_of(device)
    found = copy.copy(innermost(model).to(device))
    found.compute_dtype = compute_dtype(precision, device)
    return found


@contextmanager
def _kept(
    on_start: Callable[[Session], None] | None, at_start: Callable[[Path], None]
) -> Iterator[Callable[[Session], None]]:
    """Yields the `on_start` of a run, which is saved as it is where its reward fails."""
    sessions: list[Session] = []

    def begin(session: Session) -> None:
        sessions.append(session)
        if session.world.leads:
            at_start(session.path)
        if on_start is not None:
            on_start(session)

    try:
        yield begin
    except RewardError as error:
        if not sessions or sessions[0].world.size > 1:
            raise
        sessions[0].keep()
        at = f"step {sessions[0].state.step:,} is saved"
        raise RewardError(f"{error} Training stopped, and {at}: sfumato resume {sessions[0].path}") from error


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a run is aligned to, and how: the arguments of `align`, of which its folder keeps those that have names."""

    reward: Any
    preferences: Any
    judge: Any
    method: str
    beta: float
    weight: Any
    samples: int | None
    seed: int
    reward_seconds: float | None

    def write(self, path: Path, reference: Any) -> None:
        """Keep the arguments and the reference in a run folder, so that `resume` finds them."""
        known = {name: _name(value) for name, value in vars(self).items()}
        write_text(path / AIM, json.dumps(known, indent=1))
        serialization.save(reference, path / REFERENCE)

    @classmethod
    def read(cls, path: Path, **given: Any) -> Aim:
        """The arguments that a run folder keeps, with those in memory as they are given again."""
        if not (path / AIM).exists():
            raise SfumatoError(f"{path} is no run of sf.align that can go on: it has no {AIM}.")
        known = json.loads((path / AIM).read_text(encoding="utf-8"))
        known |= {name: value for name, value in given.items() if value is not None}
        lost = next((name for name, value in known.items() if value == MEMORY), None)
        if lost is not None:
            raise SfumatoError(
                f"The {lost} of {path} was an object in memory: pass it again, sf.reinforce.resume(run, {lost}=...)."
            )
        return cls(**known)


def _name(value: Any) -> Any:
    """An argument as JSON, with the full paths of files; MEMORY for what has no name."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and Path(value.rpartition(":")[0] or value).is_file()):
        return str(Path(value).absolute())
    return value if value is None or isinstance(value, str | int | float) else MEMORY


class Goal:
    """An `Aim` with its reference: the loss, and the samples that a run counts as its data."""

    def __init__(self, aim: Aim, reference: Any) -> None:
        if (aim.reward is None) == (aim.preferences is None):
            raise SfumatoError("align learns from a reward or from preferences: pass one of the two.")
        self.aim, self.reference = aim, reference
        own = aim.reward is None or isinstance(aim.reward, Environment)
        self.reward: Any = aim.reward if own else Reward(aim.reward, aim.reward_seconds)
        self.judge = None if aim.judge is None else Reward(aim.judge, aim.reward_seconds)
        pairs = aim.preferences
        self.pairs = Preferences.read(reference, pairs) if isinstance(pairs, str | os.PathLike) else pairs
        self.loss = self._loss()
        count = min(aim.samples or HELD, HELD)
        if isinstance(self.reward, Environment):
            played = play(reference, self.reward, max(2, count // self.reward.horizon), aim.seed + 1)
            self.data, self.labels = {"x": played.actions, STATE: played.states}, None
        else:
            self.data, self.labels = drawn(reference, count, aim.seed + 1, instead="align a model without it")

    def _loss(self) -> Any:
        """The loss of the method, with its reference and what it learns from."""
        aim, method = self.aim, self.aim.method
        if method == "auto":
            method = PREFERRED if self.reward is None else REWARDED
            method = PLAYED if isinstance(self.reward, Environment) else method
        fit = [name for name, kind in _methods().items() if (kind is Preferred) == (self.reward is None)]
        if method.split("(")[0] not in fit:
            raise SfumatoError(
                f"There is no method {method!r} that learns from "
                f"{'preferences' if self.reward is None else 'rewards'}: {suggest(method, fit)}"
            )
        given = {"reference": self.reference, "reward": self.reward, "pairs": self.pairs, "beta": aim.beta}
        given |= {} if aim.samples is None else {"samples": aim.samples}
        return make("loss", method, given | {"weight": aim.weight, "seed": aim.seed})

    def report(self, run: Run) -> Alignment:
        """What the run gained and cost, also as alignment.json in its folder."""
        aim, model = self.aim, copy.copy(run.denoiser)
        model.compute_dtype = self.reference.compute_dtype
        try:
            found = compare(model, self.reference, self.reward, self.pairs, aim.beta, self.judge, seed=aim.seed + 2)
        except RewardError as error:
            raise RewardError(
                f"{error} The model is trained, and {run.path} lacks {FILE} alone: sfumato resume {run.path}"
            ) from error
        found = found._replace(doubts=(*found.doubts, *of_weight(aim.weight), *of_weights(self.loss)))
        if leads():
            write_text(run.path / FILE, json.dumps(found.to_dict(), indent=1))
        return found


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
    model: Any, reference: Any, reward: Reward | Environment | None = None, pairs: Preferences | None = None,
    beta: float = 1.0, judge: Reward | None = None, count: int = SHOWN, seed: int = 0,
) -> Alignment:  # fmt: skip
    """What `model` gained and cost against `reference`, by `count` samples of each from the same noise.

    In an environment these are `count` episodes; before and after are their mean returns, and kl is that of an action.
    """
    new, old = (_drawn(each, reward, count, seed) for each in (model, reference))
    kl = mean_of(path_kl(model, reference, new.x, LEVELS, seed, cond=new.cond))
    held = mean_of(log_ratio(model, reference, old.x, DRAWN, LEVELS, seed=seed, cond=old.cond).value)
    before, after = (None if each.rewards is None else mean_of(each.rewards) for each in (old, new))
    judged = None if judge is None else (mean_of(judge(old.x)), mean_of(judge(new.x)))
    margin = winner = None
    if pairs is not None:
        winner, margin = _of_pairs(model, reference, pairs, seed)
    diversity = spread(new.x) / max(spread(old.x), 1e-12)
    gain = None if new.rewards is None or old.rewards is None else mean_of(new.rewards - old.rewards)
    return Alignment(
        before, after, kl, held, diversity, margin, winner, judged,
        tuple(doubts(gain, kl, beta, diversity, winner, judged)),
    )  # fmt: skip


class _Drawn(NamedTuple):
    """Samples in user units, their conditions, and their rewards, or the returns of the episodes that they make up."""

    x: Any
    cond: dict[str, Any]
    rewards: Tensor | None


def _drawn(policy: Any, reward: Any, count: int, seed: int) -> _Drawn:
    if isinstance(reward, Environment):
        played = play(policy, reward, count, seed)
        return _Drawn(played.actions, {STATE: played.states}, played.returns)
    cond = in_turn(policy, count)
    x = sample(policy, count, seed=seed, cond=cond)
    return _Drawn(x, cond, None if reward is None else reward(x))


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
