"""The loop as a function of seed and samples seen: exact resume, averages in closed form, a clear stop at NaN."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sfumato import nets, noise
from sfumato.diagnostics.draws import Trivial
from sfumato.diagnostics.validation import BINS
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.objectives import weights
from sfumato.objectives.losses import Denoising, Plain
from sfumato.objectives.times import TimeDensity
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import EMA, State, TrainConfig, fit, loop
from sfumato.training.batches import Batches
from sfumato.training.ema import exponent
from sfumato.training.loop import rate_factor

DATA = noise.normal(3, range(60), (5,), noise.DATA)
LABELS = torch.arange(60) % 3


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(nets.MLP(5, width=16, depth=2, classes=3), Gaussian(Flow()), "velocity")


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "batch": 7, "precision": "float32", **changes})


def batches(drop: float = 0.5, seed: int = 4) -> Batches:
    return Batches(DATA, LABELS, None, seed, drop, torch.device("cpu"))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_in_two_parts_is_the_run_in_one(optimizer):
    config, holdout = settings(optimizer=optimizer), (DATA[:20], LABELS[:20])
    whole = State(denoiser(), config)
    lines = [p.to_dict() for p in fit(whole.denoiser, DATA, config, LABELS, holdout, whole)]
    first = State(denoiser(), config)
    steps = fit(first.denoiser, DATA, config, LABELS, holdout, first)
    parts = [next(steps).to_dict() for _ in range(5)]
    second = State(denoiser(), config)
    second.load({name: value.clone() for name, value in first.tensors().items()}, first.counters())
    parts += [p.to_dict() for p in fit(second.denoiser, DATA, config, LABELS, holdout, second)]
    ours, theirs = whole.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    timed = {"elapsed", "eta", "rate", "data_wait"}
    assert [{k: v for k, v in line.items() if k not in timed} for line in lines] == [
        {k: v for k, v in line.items() if k not in timed} for line in parts
    ]


def test_training_learns():
    # a two-dimensional Gaussian of correlation 0.95: the trivial guess leaves a gap that a network closes
    first = noise.normal(0, range(2000), (2,), noise.DATA)
    x = torch.stack((first[:, 0], 0.95 * first[:, 0] + math.sqrt(1 - 0.95**2) * first[:, 1]), 1)
    torch.manual_seed(0)
    model = Denoiser(nets.MLP(2, width=64, depth=2), Gaussian(Flow()), "velocity")
    *_, last = fit(model, x[:1800], TrainConfig(steps=250, precision="float32"), None, (x[1800:], None))
    found = last.validation
    assert sum(found.ema) < 0.85 * sum(found.trivial)
    assert len(found.raw) == BINS and found.logsnr == sorted(found.logsnr, reverse=True)


def test_the_trivial_guess_is_exact_for_white_data():
    # E[x | z] of unit white data is the linear guess; its error in x is sigma^2 / (alpha^2 + sigma^2)
    process = Gaussian(Flow())
    x, eps = (noise.normal(s, range(4000), (8,), noise.DATA) for s in (1, 2))
    t = torch.full((4000,), 0.3, dtype=torch.float64)
    guess = Trivial(process)(process.corrupt(x, t, eps), t).x
    assert (guess - x).square().mean().item() == pytest.approx(0.09 / (0.49 + 0.09), rel=0.02)


def test_every_sample_is_seen_once_an_epoch_and_batches_do_not_matter():
    rows = batches().rows(0, 60)
    assert sorted(rows.tolist()) == list(range(60))
    assert not torch.equal(rows, batches().rows(60, 60))
    pieces = [batches().take(start, 7) for start in range(0, 70, 7)]
    x, cond, index, u = batches().take(0, 70)
    assert torch.equal(torch.cat([p[0] for p in pieces]), x) and torch.equal(torch.cat([p[3] for p in pieces]), u)
    assert torch.equal(torch.cat([p[1]["label"] for p in pieces]), cond["label"])
    assert torch.equal(index, torch.arange(70)) and torch.equal(x, DATA[batches().rows(0, 70)])


def test_labels_are_hidden_as_often_as_asked_and_never_changed():
    _, cond, _, _ = batches(drop=0.3).take(0, 6000)
    label, true = cond["label"], LABELS[batches().rows(0, 6000)]
    assert ((label == true) | (label == -1)).all()
    assert (label == -1).double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 6000))
    assert torch.equal(batches(drop=0.0).take(0, 600)[1]["label"], true[:600])


def test_noise_levels_of_any_stretch_are_spread_evenly():
    for start in (0, 1000, 123_456):
        u = batches().take(start, 64)[3].sort().values
        expected = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
        assert (u - expected).abs().max() < 3 / 64  # independent draws reach 10/64


def test_ema_is_its_closed_form():
    model, width = denoiser(), 0.1
    ema, power = EMA(model, width), exponent(width) + 1
    history, ends = [], [7 * (n + 1) for n in range(30)]
    parameter = next(model.net.parameters())
    for n, end in enumerate(ends):
        with torch.no_grad():
            parameter.copy_(torch.full_like(parameter, math.sin(n)))
        history.append(math.sin(n))
        ema.update(end - 7, end)
    weights = [(end / ends[-1]) ** power - ((end - 7) / ends[-1]) ** power for end in ends]
    expected = sum(w * v for w, v in zip(weights, history, strict=True))
    assert sum(weights) == pytest.approx(1)
    assert next(ema.denoiser.net.parameters()).flatten()[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [0.01, 0.06, 0.2, 0.28])
def test_ema_window_has_its_width(width):
    gamma = exponent(width)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    density = (gamma + 1) * u**gamma
    mean = (density * u).mean()
    assert ((density * (u - mean) ** 2).mean().sqrt().item()) == pytest.approx(width, rel=1e-3)


def test_initial_weights_are_forgotten():
    # all that was seen in the first tenth of a run, the initial weights included, has less than 1 % of the average
    assert 0.1 ** (exponent(TrainConfig().ema) + 1) < 0.01
    model = denoiser()
    ema = EMA(model, 0.06)
    with torch.no_grad():
        for p in model.net.parameters():
            p.fill_(2.0)
    ema.update(0, 7)
    assert all(bool((p == 2).all()) for p in ema.denoiser.net.parameters())


def test_learning_rate_rises_stays_and_falls():
    config = settings(warmup=100, decay=0.5, steps=10)
    assert rate_factor(50, 0.0, config) == 0.5
    assert rate_factor(50, 0.03, config) == 1  # at most 3 % of the run
    assert rate_factor(200, 0.5, config) == 1
    assert rate_factor(200, 0.75, config) == pytest.approx(0.5)
    assert rate_factor(200, 1.0, config) == 0
    assert rate_factor(200, 1.0, settings(decay=0)) == 1


def test_minutes_are_the_budget(monkeypatch):
    """By a clock of which a hundredth of a second passes between two looks, however busy the machine is."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))
    config = settings(steps=None, minutes=0.02)
    state = State(denoiser(), config)
    found = list(fit(state.denoiser, DATA, config, LABELS, None, state))
    assert found[-1].done and not any(p.done for p in found[:-1])
    assert 1.2 <= state.elapsed < 1.25 and found[-1].samples == 7 * len(found)
    assert found[-1].lr < 0.2 * config.lr


def test_no_budget_is_refused():
    with pytest.raises(SfumatoError, match="steps or minutes"):
        next(fit(denoiser(), DATA, settings(steps=None)))


def test_counts_need_a_spec():
    with pytest.raises(SfumatoError, match="data spec"):
        next(fit(denoiser(), torch.zeros(4, 5, dtype=torch.uint8), settings()))


class _Mean(nn.Module):
    """A model that is no denoiser: it has what the loop asks for, and learns one vector."""

    spec, device = None, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 5, bias=False)


def test_the_loop_trains_whatever_a_goal_says():
    goal = Plain(lambda model, batch: (batch.x - model.net.weight[:, 0]).square().mean(1))
    torch.manual_seed(0)
    model, config = _Mean(), settings(steps=300, optimizer="adamw", lr=0.05, ema=0.06, weight_decay=0.0)
    state = State(model, config, goal)
    *_, last = fit(model, DATA, config, holdout=(DATA[:9], None), state=state)
    torch.testing.assert_close(state.best.net.weight[:, 0], DATA.mean(0), atol=0.05, rtol=0)
    wanted = float((DATA[:9] - state.best.net.weight[:, 0]).square().mean())
    assert last.validation.best == pytest.approx(wanted, rel=1e-5)
    assert "bins_raw" not in last.to_dict() and "valid_ema" in last.to_dict()


class _Running(TimeDensity):
    """A density with a memory: the mean loss that it has seen, and an offset that its gradient moves."""

    def __init__(self) -> None:
        self.seen, self.offset = torch.zeros(2, dtype=torch.float64), nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.grads: list[float] = []

    def logsnr(self, u, schedule):
        return 2 - 4 * u + self.offset

    def density(self, logsnr, schedule):
        return torch.full_like(logsnr, 0.25)

    def observe(self, logsnr, losses):
        assert logsnr.shape == losses.shape and not losses.requires_grad
        self.seen += torch.stack((losses.double().sum(), torch.tensor(1.0 * len(losses))))
        self.grads.append(float(self.offset.grad))

    def parameters(self):
        return [self.offset]

    def tensors(self):
        return {"seen": self.seen}

    def load(self, tensors):
        self.seen.copy_(tensors["seen"])


def test_a_density_learns_from_the_losses_and_is_part_of_the_checkpoint():
    config = settings()
    state = State(denoiser(), config, Denoising(_Running(), weights.elbo(), 0))
    lines = [p.to_dict() for p in fit(state.denoiser, DATA, config, LABELS, state=state)]
    times = state.loss.times
    assert float(times.seen[1]) == 12 * 7
    mean = float(times.seen[0] / times.seen[1])
    assert mean == pytest.approx(sum(line["loss"] for line in lines) / len(lines), rel=1e-5)
    assert len(times.grads) == 12 and all(math.isfinite(g) and g != 0 for g in times.grads)
    other = State(denoiser(), config, Denoising(_Running(), weights.elbo(), 0))
    other.load({name: value.clone() for name, value in state.tensors().items()}, state.counters())
    assert torch.equal(other.loss.times.seen, times.seen)
