"""Checks of a model's answers on noised data, where the truth is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.diagnostics.answers import DEAD, HALF_MAX, Answers
from sfumato.diagnostics.checks.evidence import Evidence, Sample
from sfumato.diagnostics.checks.finding import ERROR, WARNING, Finding
from sfumato.diagnostics.checks.of_weights import unlearned_embedding
from sfumato.diagnostics.hypotheses import SURE, Fit, Hypothesis, declared, others
from sfumato.errors import counted

WORSE = 0.2  # skill below -0.2 at some level: the answers mean something else, or nothing
GAP = 0.06  # of the guess's loss that is lost by a wrong scale alone: the same
WRONG = 0.1  # below the guess by so much at half of the levels: the model knows other data, or nothing
BETTER = 0.08  # mean skill by which another meaning must win
LIKELY = -0.15  # the least skill that the true meaning may have at any level
HALFWAY = 0.5  # between labels without information (0) and right ones (1)
EXPLAINED, UNUSED = 0.1, 0.05  # of the error that the classes explain; response over that part
KNOWN = 200  # samples from which on labels without information show
PILED, BEYOND = 0.01, 0.02  # share of predictions that are the largest one; share of the data beyond it
LEAST = 0.1  # nats below which a condition carries as good as no information


def meaning(answers: Answers | None) -> Hypothesis | None:
    """The reading that the answers fit instead of the declared one; None where that fits as well, or nothing does."""
    if answers is None or not answers.finite:
        return None
    own = declared(answers).score(answers)
    if own is None or (float(own.most.min()) > -WORSE and own.gap < GAP):
        return None
    best: tuple[float, Hypothesis] | None = None
    for other in others(answers):
        score = other.score(answers)
        if score is None or float(score.most.min()) < LIKELY:
            continue
        if score.gap > own.gap / 2 or score.mean < own.mean + BETTER or not _wins(score, own):
            continue
        if best is None or score.mean > best[0] + 0.02:
            best = score.mean, other
    return None if best is None else best[1]


def _wins(score: Fit, own: Fit) -> bool:
    """Whether a reading is surely better at a third of the levels or more, and surely much worse at none.

    At one level all targets are affine in E[x | z]: a network that is right under one reading is off under any other,
    at all levels but where the two agree. A single level that training hardly saw does not decide.
    """
    room = SURE * (score.skill_error.square() + own.skill_error.square()).sqrt()
    better = score.skill - own.skill
    return bool(3 * (better > room).sum() >= len(better)) and not bool((-better - room > BETTER).any())


def misread(evidence: Evidence) -> Finding | None:
    """The answers fit another reading than the declared one: its negative, another schedule or another target."""
    answers, found = evidence.answers, meaning(evidence.answers)
    if answers is None or found is None:
        return None
    own, other = declared(answers).score(answers), found.score(answers)
    assert own is not None and other is not None
    numbers = {
        "logsnr": answers.logsnr.tolist(), "slope": own.slope.tolist(), "skill": own.skill.tolist(),
        "skill as found": other.skill.tolist(),
    }  # fmt: skip
    schedule, declared_schedule = type(found.schedule).__name__, type(answers.schedule).__name__
    if found.sign == -1:
        under = "" if (found.target, found.schedule) == (answers.target, answers.schedule) else f" under {schedule}"
        return Finding(
            "sign-flipped",
            f"the network predicts -{found.target}{under} where the file declares {answers.target}",
            numbers,
            "Negate the network's output, or train with the sign that defines the target (z = alpha x + sigma eps).",
        )
    if found.schedule != answers.schedule:
        also = "" if found.target == answers.target else f", as {found.target}"
        return Finding(
            "schedule",
            f"the network learned under {schedule}{also}, and is read under {declared_schedule}",
            numbers,
            "Declare the schedule that it was trained with; "
            f"sf.Rescheduled(model, {declared_schedule}()) then samples it under another.",
        )
    return Finding(
        "target",
        f"the network predicts {found.target}, and is read as {answers.target}",
        numbers,
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
    worse = int((own.most < -WRONG).sum())
    if 2 * worse < len(own.skill):
        return None
    return Finding(
        "worse-than-guess",
        f"at {worse} of {len(own.skill)} noise levels the model loses more than the linear guess",
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
    skipped = [each for each in evidence.incidents or () if each.get("precision") == "float16"]
    if not skipped:
        return None
    return Finding(
        "half-overflow",
        f"{counted(len(skipped), 'step was', 'steps were')} skipped while the network computed in float16, the first "
        f"as {skipped[0]['where']}",
        {"skipped": len(skipped), "first step": skipped[0]["step"]},
        "Train with --precision bfloat16 or float32: both reach 3e38, float16 ends at 65,504.",
    )


def condition_dead(evidence: Evidence) -> Finding | None:
    """Another value changes nothing in the answers, or what embeds the values has never learned."""
    answers, weights, settings = evidence.answers, evidence.weights, evidence.settings or {}
    responses: dict[str, float] = {}
    if answers is not None and _speaks(answers):
        label = {} if answers.sensitivity.label is None else {"label": answers.sensitivity.label}
        responses = label | answers.sensitivity.others
    dead = [*(evidence.unheard or ()), *(name for name, response in responses.items() if response < DEAD)]
    unlearned = None if weights is None else unlearned_embedding(weights)
    if not dead and unlearned is None:
        return None
    numbers: dict[str, Any] = {"response": responses[dead[0]]} if dead and dead[0] in responses else {}
    what = f"another value of {', '.join(map(repr, dict.fromkeys(dead)))} changes nothing in the network's answers"
    if weights is not None and unlearned is not None and dead[:1] in ([], ["label"]):
        what = f"the labels never reached the network: {unlearned} is as it was made"
        numbers["steps"] = weights.steps
    return Finding(
        "condition-dead",
        what,
        numbers | ({"drop": settings["drop"]} if "drop" in settings else {}),
        "Check that the network uses this argument, that values reach it, and that --drop is well below 1.",
    )


def condition_uninformative(evidence: Evidence) -> Finding | None:
    """Late in a run the interval of what a condition says beside the others, in nats, holds 0, and ends below LEAST."""
    if evidence.information is None or len(evidence.information.each) < 1:
        return None
    silent = {name: found for name, found in evidence.information.each.items() if found.low <= 0 and found.high < LEAST}
    if "label" in silent and labels_shuffled(evidence) is not None:
        del silent["label"]
    if not silent:
        return None
    name, found = next(iter(silent.items()))
    others = f", nor do {', '.join(list(silent)[1:])}" if len(silent) > 1 else ""
    beside = " beyond the others" if len(evidence.information.each) > 1 else ""
    return Finding(
        "condition-uninformative",
        f"{name!r} carries no information about held-out samples{beside}{others}",
        {"nats": found.value, "from": found.low, "to": found.high},
        "Check that its values belong to the samples; a condition without information can be left out (NAME:ignore).",
        WARNING,
    )


def level_dead(evidence: Evidence) -> Finding | None:
    """Another noise level changes nothing in the answers."""
    answers = evidence.answers
    if answers is None or not _speaks(answers) or answers.sensitivity.level >= DEAD:
        return None
    return Finding(
        "level-dead",
        "another noise level changes nothing in the network's answers",
        {"response": answers.sensitivity.level},
        "Check that the network uses its second argument, one noise level a sample.",
    )


def _speaks(answers: Answers) -> bool:
    """Whether the answers are finite and not all zero."""
    return answers.finite and float(answers.gram[..., 0, 0].sum()) > 0


def gain(answers: Answers) -> tuple[float, float] | None:
    """(g, its standard error): the worth of the labels, as a part of what the network expects of them.

    g = (E|y' - y*|^2 - E|y - y*|^2) / E|y - y'|^2,  y under the sample's own label, y' under another: 1 where y is
    E[y* | z, label], 0 where the labels have nothing to do with the samples.
    """
    change = answers.sensitivity
    if change.own is None or change.other is None or change.moved is None or len(change.own) < 8:
        return None
    moved = float(change.moved.mean())
    if not moved > 0:
        return None
    difference = change.other - change.own
    g = float(difference.mean()) / moved
    return g, float((difference - g * change.moved).std()) / moved / math.sqrt(len(change.own))


def labels_shuffled(evidence: Evidence) -> Finding | None:
    """g surely below 1/2; where it is not sure either way, classes whose samples differ no more than by chance."""
    answers = evidence.answers
    if answers is not None and answers.finite and answers.held and (found := gain(answers)) is not None:
        g, error = found
        numbers = {"gain": g, "standard error": error}
        change = answers.sensitivity
        assert change.own is not None and change.moved is not None
        loss = float(change.own.mean())
        explained, used = (change.by_class or 0.0) / loss, float(change.moved.mean()) / loss
        if explained > EXPLAINED and used < UNUSED * explained:
            what = f"the classes would explain {explained:.0%} of the network's error, and it hardly uses them"
            return _shuffled(what, numbers | {"explained": explained, "used": used})
        if g + SURE * error < HALFWAY:
            return _shuffled(f"for held-out samples the labels do {g:.0%} of what the network expects of them", numbers)
        if g - SURE * error > 0:
            return None
    z = None if evidence.sample is None else association(evidence.sample)
    if z is None or z > SURE:
        return None
    return _shuffled("means, spreads and spectra of the classes differ no more than by chance", {"z": z}, WARNING)


def _shuffled(what: str, numbers: dict[str, Any], severity: str = ERROR) -> Finding:
    cure = "Check that labels and samples are in the same order: sort, shuffle or skip both together."
    return Finding("labels-shuffled", what, numbers, cure, severity)


def association(sample: Sample, turns: int = 19) -> float | None:
    """By how many deviations the classes differ more than random classes do; None where too little is known.

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
