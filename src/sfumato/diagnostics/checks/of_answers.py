"""Faults that a model's answers show where the truth is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.diagnostics.answers import DEAD, HALF_MAX, Answers
from sfumato.diagnostics.checks.evidence import SURE, Evidence, Sample
from sfumato.diagnostics.checks.finding import WARNING, Finding
from sfumato.diagnostics.checks.of_log import half_recorded
from sfumato.diagnostics.checks.of_weights import dead_label, rows_unlearned
from sfumato.diagnostics.hypotheses import Hypothesis, Score, declared, others

WORSE = 0.2  # skill below -0.2 at some level: the answers mean something else, or nothing
GAP = 0.06  # of the guess's loss that is lost by a wrong scale alone: the same
WRONG = 0.1  # below the guess by so much at half of the levels: the model knows other data, or nothing
BETTER = 0.08  # mean skill by which another meaning must win
LIKELY = -0.15  # the least skill that the true meaning may have at any level
HALFWAY = 0.5  # between labels that say nothing (0) and what they should (1)
TOLD, UNUSED = 0.1, 0.05  # of the error that the classes explain; response over that part
KNOWN = 200  # samples from which on labels that say nothing show
PILED, BEYOND = 0.01, 0.02
LEAST = 0.1  # nats below which a condition says as good as nothing


def _worst(score: Score) -> tuple[int, float]:
    """(level, skill) that is surely the lowest."""
    sure = score.skill + SURE * score.skill_error
    k = int(sure.argmin())
    return k, float(sure[k])


def meaning(answers: Answers | None) -> Hypothesis | None:
    """What the answers mean instead of what is declared, or None where that is as good, or nothing is."""
    if answers is None or not answers.finite:
        return None
    own = declared(answers).score(answers)
    if own is None or (_worst(own)[1] > -WORSE and own.gap < GAP):
        return None
    best: tuple[float, Hypothesis] | None = None
    for other in others(answers):
        score = other.score(answers)
        if score is None or float((score.skill + SURE * score.skill_error).min()) < LIKELY:
            continue
        if score.gap > own.gap / 2 or score.mean < own.mean + BETTER or not _wins(score, own):
            continue
        if best is None or score.mean > best[0] + 0.02:
            best = score.mean, other
    return None if best is None else best[1]


def _wins(score: Score, own: Score) -> bool:
    """Whether a meaning is surely better at a third of the levels or more, and the declared one surely nowhere by much.

    At one level all targets are affine in E[x | z]: a network that knows it under one reading is off under any other,
    at all levels but where the two agree. One level that training hardly saw says nothing of the meaning.
    """
    room = SURE * (score.skill_error.square() + own.skill_error.square()).sqrt()
    better = score.skill - own.skill
    return bool(3 * (better > room).sum() >= len(better)) and not bool((-better - room > BETTER).any())


def _numbers(answers: Answers, found: Hypothesis) -> dict[str, Any]:
    own, other = declared(answers).score(answers), found.score(answers)
    assert own is not None and other is not None
    return {
        "logsnr": answers.logsnr.tolist(), "slope": own.slope.tolist(), "skill": own.skill.tolist(),
        "skill as found": other.skill.tolist(),
    }  # fmt: skip


def sign_flipped(evidence: Evidence) -> Finding | None:
    """The negative of the declared target fits, and the declared one is worse than the guess: slopes near -1."""
    found = meaning(evidence.answers)
    if found is None or found.sign != -1:
        return None
    assert evidence.answers is not None
    own = declared(evidence.answers)
    same = (found.target, found.schedule) == (own.target, own.schedule)
    what = f"-{found.target}" if same else f"-{found.target} under {type(found.schedule).__name__}"
    return Finding(
        "sign-flipped",
        f"the network says {what} where the file declares {own.target}",
        _numbers(evidence.answers, found),
        "Negate the network's output, or train with the sign that the target is defined by (z = alpha x + sigma eps).",
    )


def _other_meaning(evidence: Evidence) -> tuple[Answers | None, Hypothesis | None]:
    """(the answers, what they mean), the latter None where it is what is declared, or its negative."""
    found = meaning(evidence.answers)
    return evidence.answers, found if found is not None and found.sign == 1 else None


def schedule(evidence: Evidence) -> Finding | None:
    """The declared target of another named schedule fits."""
    answers, found = _other_meaning(evidence)
    if answers is None or found is None or found.schedule == answers.schedule:
        return None
    name, own = type(found.schedule).__name__, type(answers.schedule).__name__
    also = "" if found.target == answers.target else f", as {found.target}"
    return Finding(
        "schedule",
        f"the network learned under {name}{also}, and is read under {own}",
        _numbers(answers, found),
        f"Declare the schedule that it was trained with; sf.Rescheduled(model, {own}()) then samples it under another.",
    )


def wrong_target(evidence: Evidence) -> Finding | None:
    """Another target under the declared schedule fits."""
    answers, found = _other_meaning(evidence)
    if answers is None or found is None or found.schedule != answers.schedule:
        return None
    return Finding(
        "target",
        f"the network says {found.target}, and is read as {answers.target}",
        _numbers(answers, found),
        f"Build the denoiser with target={found.target!r}.",
    )


def worse_than_guess(evidence: Evidence) -> Finding | None:
    """Surely 0.1 below the guess at half of the levels or more, and no other meaning fits."""
    answers = evidence.answers
    if answers is None:
        return None
    own = declared(answers).score(answers)
    if own is None or not answers.finite or meaning(answers) is not None:
        return None
    worse = int((own.skill + SURE * own.skill_error < -WRONG).sum())
    if 2 * worse < len(own.skill):
        return None
    return Finding(
        "worse-than-guess",
        f"at {worse} of {len(own.skill)} noise levels the model loses more than a guess that looks at nothing",
        {"logsnr": answers.logsnr.tolist(), "skill": own.skill.tolist(), "slope": own.slope.tolist()},
        "Look at the samples and at the loss by noise level in report.html; the data may be other than in training.",
    )


def half_overflow(evidence: Evidence) -> Finding | None:
    """A part of a float16 network whose output passes 65,504 in float32; or steps skipped in float16."""
    answers = evidence.answers
    if answers is not None and answers.half and (answers.peak[0] > HALF_MAX or not answers.finite):
        value, name = answers.peak
        return Finding(
            "half-overflow",
            f"{name} reaches {value:.3g} in float32, and the network computes in float16, which ends at 65,504",
            {"largest": value, "limit": HALF_MAX},
            "Use bfloat16 or float32: both reach 3e38.",
        )
    return half_recorded(evidence)


def condition_dead(evidence: Evidence) -> Finding | None:
    """Another value changes nothing in the answers, or what embeds the values has never learned."""
    answers, settings = evidence.answers, evidence.settings or {}
    responses: dict[str, float] = {}
    if answers is not None and _speaks(answers):
        label_alone = {} if answers.heard.label is None else {"label": answers.heard.label}
        responses = label_alone | answers.heard.others
    dead = [*(evidence.deaf or ()), *(name for name, response in responses.items() if response < DEAD)]
    label = dead_label(evidence.weights)
    hidden = evidence.weights is not None and rows_unlearned(evidence.weights)
    if not dead and label is None and not hidden:
        return None
    numbers: dict[str, Any] = {"response": responses[dead[0]]} if dead and dead[0] in responses else {}
    named = ", ".join(map(repr, dict.fromkeys(dead)))
    what = f"another value of {named} changes nothing in what the network says"
    if not dead or (dead[0] == "label" and (label is not None or hidden)):
        what = f"the labels never reached the network: {label or 'the embedding of every class'} is as it was made"
        numbers |= {"steps": evidence.weights.steps if evidence.weights else 0}
    return Finding(
        "condition-dead",
        what,
        numbers | ({"drop": settings["drop"]} if "drop" in settings else {}),
        "Look that the network uses this argument, that values reach it, and that --drop is well below 1.",
    )


def condition_uninformative(evidence: Evidence) -> Finding | None:
    """Late in a run the interval of what a condition says beside the others, in nats, holds 0, and ends below LEAST."""
    if evidence.told is None or len(evidence.told.each) < 1:
        return None
    silent = {name: found for name, found in evidence.told.each.items() if found.low <= 0 and found.high < LEAST}
    if "label" in silent and labels_shuffled(evidence) is not None:
        del silent["label"]
    if not silent:
        return None
    name, found = next(iter(silent.items()))
    others = f", nor {', '.join(list(silent)[1:])}" if len(silent) > 1 else ""
    beside = " beside the others" if len(evidence.told.each) > 1 else ""
    return Finding(
        "condition-uninformative",
        f"{name!r} says nothing of held-out samples{beside}{others}",
        {"nats": found.value, "from": found.low, "to": found.high},
        "Look that its values belong to the samples; a condition that says nothing can be left out (NAME:ignore).",
        WARNING,
    )


def level_dead(evidence: Evidence) -> Finding | None:
    """Another noise level changes nothing in the answers."""
    answers = evidence.answers
    if answers is None or not _speaks(answers) or answers.heard.level >= DEAD:
        return None
    return Finding(
        "level-dead",
        "another noise level changes nothing in what the network says",
        {"response": answers.heard.level},
        "Look that the network uses its second argument, one noise level a sample.",
    )


def _speaks(answers: Answers) -> bool:
    """Whether the answers are finite and not all zero."""
    return answers.finite and float(answers.gram[..., 0, 0].sum()) > 0


def gain(answers: Answers) -> tuple[float, float] | None:
    """(g, its standard error): how far the labels do what the network takes them to do.

    g = (E|y' - y*|^2 - E|y - y*|^2) / E|y - y'|^2,  y under the sample's own label, y' under another: 1 where y is
    E[y* | z, label], 0 where the labels have nothing to do with the samples.
    """
    heard = answers.heard
    if heard.own is None or heard.other is None or heard.moved is None or len(heard.own) < 8:
        return None
    moved = float(heard.moved.mean())
    if not moved > 0:
        return None
    difference = heard.other - heard.own
    g = float(difference.mean()) / moved
    return g, float((difference - g * heard.moved).std()) / moved / math.sqrt(len(heard.own))


def labels_shuffled(evidence: Evidence) -> Finding | None:
    """g surely below 1/2; where it is not sure either way, labels of which the samples know nothing."""
    answers, sample = evidence.answers, evidence.sample
    numbers: dict[str, Any] = {}
    if answers is not None and answers.finite and answers.held and (found := gain(answers)) is not None:
        g, error = found
        numbers = {"gain": g, "standard error": error}
        told, moved = _unused(answers)
        if told > TOLD and moved < UNUSED * told:
            what = f"the classes would explain {told:.0%} of what the network gets wrong, and it hardly uses them"
            return _shuffled(what, numbers | {"explained": told, "used": moved})
        if g + SURE * error < HALFWAY:
            return _shuffled(
                f"the labels do {g:.0%} of what the network takes them to do for held-out samples", numbers
            )
        if g - SURE * error > 0:
            return None
    z = None if sample is None else association(sample)
    if z is None or z > SURE:
        return None
    return _shuffled("means, spreads and spectra of the classes differ no more than by chance", numbers | {"z": z},
                     WARNING)  # fmt: skip


def _unused(answers: Answers) -> tuple[float, float]:
    """(what the classes would explain, what another label changes), as parts of the error."""
    heard = answers.heard
    assert heard.own is not None and heard.moved is not None
    error = float(heard.own.mean())
    return (heard.untold or 0.0) / error, float(heard.moved.mean()) / error


def _shuffled(what: str, numbers: dict[str, Any], severity: str = "error") -> Finding:
    cure = "Look that labels and samples are in the same order: sort, shuffle or skip both together."
    return Finding("labels-shuffled", what, numbers, cure, severity)


def association(sample: Sample, turns: int = 19) -> float | None:
    """By how many deviations the classes differ more than classes at random do; None where that cannot be told.

    max over (values, squares, spectra) of (F - mean F_perm) / std F_perm, F = between-class over within-class variance.
    """
    if sample.labels is not None and bool((sample.labels < 0).any()):  # a missing label is no class
        known = sample.labels >= 0
        sample = dataclasses.replace(sample, x=sample.x[known], labels=sample.labels[known])
    label = sample.labels
    if label is None or len(label) < KNOWN or len(label.unique()) < 2 or len(label) < 4 * len(label.unique()):
        return None
    x = sample.normalised.flatten(2) if sample.field else sample.normalised[:, None]
    pooled = torch.nn.functional.adaptive_avg_pool1d(x, min(64, x.shape[2])).flatten(1)
    spectrum = torch.fft.rfft(x - x.mean(2, keepdim=True)).abs().flatten(1)[:, :256]
    products = (x[:, :, 1:] * x[:, :, :-1]).mean(2)
    best = -math.inf
    for features in (pooled, pooled.square(), spectrum, products):
        own = _between(features, label)
        random = torch.tensor([_between(features, label[noise.permutation(7, k, len(label))]) for k in range(turns)])
        spread = float(random.std())
        if spread > 0:
            best = max(best, (own - float(random.mean())) / spread)
    return best if math.isfinite(best) else None


def _between(features: Tensor, label: Tensor) -> float:
    """Sum over features of the variance of class means about the mean, over that within classes."""
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-12)
    count = torch.zeros(int(label.max()) + 1, dtype=torch.float64).index_add(0, label, torch.ones(len(label)).double())
    total = torch.zeros(len(count), features.shape[1], dtype=torch.float64).index_add(0, label, features)
    return float((total.square() / count.clamp_min(1)[:, None]).sum())


def clipped(evidence: Evidence) -> Finding | None:
    """1 % of the predictions of clean data are the largest one, and 2 % of the data lie beyond it by a twentieth."""
    answers = evidence.answers
    if answers is None or answers.piled < PILED or answers.beyond < BEYOND:
        return None
    return Finding(
        "clipped",
        f"predictions end at {answers.cut:.3g} deviations, and {answers.beyond:.0%} of the data lie beyond",
        {"largest": answers.cut, "predictions there": answers.piled, "data beyond": answers.beyond},
        "Take the clamp away: normalised data have no bounds of their own, and declared bounds are kept at the end.",
    )
