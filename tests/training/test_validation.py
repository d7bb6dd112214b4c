"""The board in training: it changes no step, costs its share, says what the loss says, is read back by the report."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import nets, noise
from sfumato.diagnostics.board_figures import from_log
from sfumato.diagnostics.triples import read, trend
from sfumato.diagnostics.validation import BINS, MICRO, validator_for
from sfumato.distributed import ALONE
from sfumato.model import Denoiser
from sfumato.objectives import Objective, denoising_loss
from sfumato.objectives.adaptive import adaptive
from sfumato.objectives.losses import Denoising
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit
from sfumato.training.console import Silent
from sfumato.training.evaluation_schedule import GRADIENTS, LOSSES
from sfumato.training.validation import Judge, judge

DATA = noise.normal(3, range(400), (5,), noise.DATA)
HOLDOUT = noise.normal(4, range(100), (5,), noise.DATA)


def denoiser(dropout: float = 0.0) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(nets.MLP(5, width=16, depth=1, dropout=dropout), Gaussian(Flow()), "velocity")


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 80, "batch": 64, "precision": "float32", **changes})


def scored(lines) -> list:
    return [line.validation for line in lines if line.validation is not None]


def test_the_board_changes_no_step():
    """With dropout the next step depends on torch's random numbers: bitwise the same with and without the board."""
    states, found = [], []
    for holdout in ((HOLDOUT, None), None):
        state = State(denoiser(dropout=0.3), settings(batch=256))
        torch.manual_seed(5)
        found.append(scored(fit(state.denoiser, DATA, settings(batch=256), None, holdout, state)))
        states.append(state.tensors() | {"random": torch.random.get_rng_state()})
    assert any("grad_square" in one.board for one in found[0]) and not found[1]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("steps", "batch"), [(80, 64), (400, 40), (500, 64)])
def test_it_costs_its_share_at_most(monkeypatch, steps, batch):
    """Counted in samples that pass the network: forward alone is a third of a pass that learns."""
    work = {"training": 0.0, "forward": 0.0, "gradients": 0.0}
    forward = nets.MLP.forward

    def counted(self, x, noise_level, label=None):
        kind = "training" if self.training else "gradients" if torch.is_grad_enabled() else "forward"
        work[kind] += len(x) / (3 if kind == "forward" else 1)
        return forward(self, x, noise_level, label)

    monkeypatch.setattr(nets.MLP, "forward", counted)
    model = denoiser()
    found = scored(fit(model, DATA, settings(steps=steps, batch=batch), None, (HOLDOUT, None)))
    assert work["training"] == steps * batch
    assert 0 < work["forward"] <= LOSSES * work["training"] and work["gradients"] <= GRADIENTS * work["training"]
    assert bool(work["gradients"]) == (steps * batch > 20_000)
    assert len(found) == len([one for one in found if "grad_square" in one.board]) or len(found) > 1


def test_a_tiny_run_is_validated_once():
    found = scored(fit(denoiser(), DATA, settings(steps=12, batch=7), None, (HOLDOUT, None)))
    assert len(found) == 1 and "grad_square" not in found[0].board and found[0].gradient is None


def test_work_on_an_accelerator_is_counted_in_batches():
    """There a small call takes as long as a whole batch."""
    here = validator_for(Denoising(sf.times.logit_normal(), None, 0), denoiser(), HOLDOUT, {}, 72, 64)
    assert here.cost == (2 * 72 / 3, BINS * MICRO * 4)
    here.draws.x = here.draws.x.to("meta")  # a device that is no CPU
    assert here.cost == (2 * 128 / 3, BINS * MICRO * 64)


@pytest.mark.parametrize("weight", [None, "sigmoid", "edm"])
@pytest.mark.parametrize("target", ["velocity", "x", "v"])
def test_the_bins_are_the_loss_of_training(target, weight):
    model = denoiser()
    torch.nn.init.normal_(model.net.output.weight, std=0.3)
    model.process = dataclasses.replace(model.process, target=target)
    times, w = sf.times.logit_normal(), None if weight is None else sf.weights.NAMED[weight]()
    validator = validator_for(Denoising(times, w, 0), model, HOLDOUT, {}, 72, 16)
    found, drawn = validator.measure(model, None), validator.draws.take(validator.draws.index)
    with torch.no_grad():
        losses = denoising_loss(model, drawn.x, drawn.t, w, times, eps=drawn.eps) * (2 / 5)
    expected = losses.reshape(-1, BINS).mean(0).double()
    assert torch.allclose(torch.tensor(found.raw, dtype=torch.float64), expected, rtol=1e-4)
    assert found.best == pytest.approx(float(losses.mean()), rel=1e-4) and found.ema is None


def test_what_adapts_is_judged_on_levels_that_stay():
    """The bins do not move with the density; the log says the density that training draws from."""
    model, times = denoiser(), adaptive()
    goal = Denoising(times, sf.weights.sigmoid(), 0)
    validator = validator_for(goal, model, HOLDOUT, {}, 64, 64)
    first = validator.measure(model, None)
    assert torch.allclose(torch.tensor(first.board["density"]), torch.tensor(1 / 30), rtol=1e-6)
    schedule = model.process.schedule
    levels = times.logsnr(torch.linspace(0.01, 0.99, 500, dtype=torch.float64), schedule)
    times.observe(levels, torch.where(levels > 0, 9.0, 1.0).double())
    second = validator.measure(model, None)
    assert second.raw == first.raw and second.logsnr == first.logsnr
    assert second.board["density"][2] > 2 * second.board["density"][-3]
    facts = from_log([second.to_dict()], Objective(schedule, "velocity", times, sf.weights.sigmoid()))
    assert facts["span"] == pytest.approx([30 / BINS] * BINS)
    total = sum(facts["contribution"]["raw"]["value"])
    assert total == pytest.approx(math.fsum(first.raw) / BINS)


def test_each_gradient_has_its_own_draws():
    model = denoiser()
    torch.nn.init.normal_(model.net.output.weight, std=0.3)
    validator = validator_for(Denoising(sf.times.logit_normal(), None, 0), model, HOLDOUT, {}, 64, 64)
    a, b, again = (validator.measure(model, None, first) for first in (640, 1280, 640))
    assert a.board["grad_square"] != b.board["grad_square"] and a.to_dict() == again.to_dict()
    assert a.raw == b.raw
    assert a.to_dict()["valid_noise_scale"] in (None, pytest.approx(a.gradient[1] / a.gradient[0]))


def test_the_log_is_read_as_a_board():
    config = settings(steps=200, batch=256)
    state = State(denoiser(), config)
    lines = [p.to_dict() for p in fit(state.denoiser, DATA, config, None, (HOLDOUT, None), state)]
    lines = json.loads(json.dumps([line for line in lines if "valid_raw" in line], allow_nan=False))
    facts = from_log(lines, Objective(Flow(), "velocity", sf.times.logit_normal()))
    last = lines[-1]
    assert list(facts["loss"]) == ["raw", "ema", "trivial"] and facts["loss"]["ema"]["value"] == last["bins_loss_ema"]
    assert sum(facts["contribution"]["ema"]["value"]) == pytest.approx(last["valid_ema"])
    deep = [line for line in lines if "bins_grad_square" in line]
    kept = deep[len(deep) // 2 :]
    assert len(deep) >= 2
    mean = np.mean([line["bins_grad_variance"] for line in kept], 0)
    assert facts["gradients"]["variance"]["value"] == pytest.approx(mean.tolist())
    assert from_log([{"loss": 1.0}], Objective(Flow())) is None


def judged(model, held, train, count=BINS * 14):
    return validator_for(Denoising(sf.times.logit_normal(), None, 0), model, held, {}, count, 64, (train, {}))


def test_a_change_is_known_better_than_a_loss():
    """The same triples: what a step of training does to them is told from nothing long before the loss is known."""
    model = denoiser()
    torch.nn.init.normal_(model.net.output.weight, std=0.3)
    validator = judged(model, HOLDOUT, DATA[:100])
    before = validator.measure(model, None).triples
    with torch.no_grad():
        model.net.output.weight *= 0.98
    now = validator.measure(model, None).triples
    change = now.change(before)
    assert change.high < 0 and trend(change) == "improving" and trend(before.change(now)) == "worse"
    assert change.half < 0.1 * now.interval().half
    assert (
        trend(now.change(now)) == "no change"
        and now.change(judged(model, DATA, DATA).measure(model, None).triples) is None
    )
    bands = [now.interval(band=k).value for k in range(3)]
    assert sum(bands) / 3 == pytest.approx(now.interval().value) == pytest.approx(validator.measure(model, None).best)


def test_fixed_triples_vary_a_tenth_as_much_as_redrawn_ones():
    """The loss from one look at a run to the next: its changes over samples, noise and levels that stay, or not."""
    config = settings(steps=300, batch=256)
    torch.manual_seed(0)
    model = Denoiser(nets.MLP(5, width=64, depth=2), Gaussian(Flow()), "velocity")
    state = State(model, config)
    fixed, kept, redrawn = judge(state, config, HOLDOUT, None), [], []
    for progress in fit(model, DATA, config, None, None, state):
        if progress.step > 100 and progress.step % 10 == 0:
            other = judge(state, config.replace(seed=progress.step), HOLDOUT, None)
            kept.append(fixed.measure(model, state.best).best)
            redrawn.append(other.measure(model, state.best).best)
    assert len(kept) == 20 and kept[0] != kept[-1]
    variances = [float(torch.tensor(curve).diff().var()) for curve in (kept, redrawn)]
    assert 0 < variances[0] < variances[1] / 10


def test_the_log_keeps_what_is_needed_to_compare_lines():
    model = denoiser()
    triples = judged(model, HOLDOUT, DATA[:100]).measure(model, None)
    line = json.loads(json.dumps(triples.to_dict(), allow_nan=False))
    back = read(line)
    assert back.gap().value == pytest.approx(triples.triples.gap().value, abs=1e-4)
    assert line["valid_low"] < line["valid_raw"] < line["valid_high"]
    assert line["valid_gap_low"] < line["valid_gap"] < line["valid_gap_high"] and len(line["bands_valid"]) == 3
    assert read({"loss": 1.0}) is None


def test_training_samples_of_the_same_law_show_no_gap():
    """Over 60 pairs of sets the interval of the gap holds 0 as often as it says."""
    model, inside = denoiser(), 0
    torch.nn.init.normal_(model.net.output.weight, std=0.3)
    for k in range(60):
        held, train = (noise.normal(100 + 2 * k + side, range(40), (5,), noise.DATA) for side in (0, 1))
        gap = judged(model, held, train).measure(model, None).triples.gap()
        inside += gap.low <= 0 <= gap.high
    assert inside >= 52  # 57 within three deviations


def test_what_was_learned_by_heart_shows_as_a_gap():
    """Twelve samples of a law of 5 numbers: by level, and beside a validation that was made early."""
    train, config = DATA[:12], settings(steps=120, batch=256, warmup=0)
    torch.manual_seed(0)
    model = Denoiser(nets.MLP(5, width=64, depth=2), Gaussian(Flow()), "velocity")
    found = [one.triples for one in scored(fit(model, train, config, None, (HOLDOUT, None)))]
    gap = found[-1].gap()
    assert gap.low > 0 and found[-1].gap(0) is not None and gap.value > 3 * found[0].gap().half
    assert trend(found[-1].change(found[1])) == "worse"


def test_judged_are_samples_of_all_classes():
    """A folder is sorted by class; its first samples would be of one."""
    labels = torch.arange(300) // 30
    config = settings(steps=400, batch=64)
    model = Denoiser(nets.MLP(5, classes=10, width=16, depth=1), Gaussian(Flow()), "velocity")
    state = State(model, config)
    measure = judge(state, config, DATA[:300], labels, (DATA[:300], labels))
    assert len(measure.draws.cond["label"].unique()) == 10 == len(measure.beside.cond["label"].unique())


def test_a_slow_run_of_minutes_is_not_overspent():
    """Its pace is looked at first: 20 samples a second for a minute bear 18 triples, not 126."""
    state, config = State(denoiser(), settings(steps=None, minutes=1.0)), settings(steps=None, minutes=1.0)
    sides = (DATA, None), (HOLDOUT, None)
    own = Judge(state, config, *sides)
    assert own.at(0.0, 0.01, ALONE) is None and state.triples == 0
    state.samples = 1200
    last = own.at(0.99, 1.0, ALONE)
    assert state.triples == len(last.triples.sample) == 2 * BINS
    fast = State(denoiser(), config)
    fast.samples = 40_000
    Judge(fast, config, *sides).at(0.4, 0.5, ALONE)
    assert fast.triples == BINS * 14


@pytest.mark.parametrize("count", [9, 10, 12, 18, 27, 100])
def test_a_sample_goes_through_the_levels(count):
    """Where draws share samples no level has samples of its own."""
    draws = judged(denoiser(), HOLDOUT[:count], HOLDOUT[:count]).draws
    shared = {int(s) for s in draws.row if int((draws.row == s).sum()) > 1}
    for sample in shared:
        levels = draws.index[draws.row == sample] % BINS
        assert len(levels.unique()) >= min(BINS, len(levels)) - 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sf.training.Run:
    folder = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32) * [1.0, 5.0, 0.2] + 7
    np.savez(folder / "x.npz", x=x.astype(np.float32), labels=np.resize([0, 1], 400))
    return sf.train(
        folder / "x.npz", folder / "run", console=Silent(), steps=80, batch=256, precision="float32", net="tiny",
        times="uniform", weight="sigmoid", holdout=0.2,
    )  # fmt: skip


def test_the_report_shows_the_board(run):
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "The weight is that of sigmoid; the weight never rises with logsnr" in " ".join(page.split())
    for words in ("Loss by noise level", "What each noise level adds", "Weight and density", "Gradient noise scale"):
        assert words in page


def test_a_run_has_its_board(run):
    """Its objective, both weights, the samples that were held out, under their classes."""
    data = run.path.parent / "x.npz"
    board = sf.board(run.path, data, samples=40, gradients=4)
    assert board.models == ("raw", "ema") and board.objective.nearest().name == "sigmoid" and board.monotone
    assert "times uniform, weight sigmoid" in str(board) and "training held out" in board.notes[0]
    other = sf.board(run.path, data, samples=40, gradients=0, conditional=False)
    assert not torch.equal(other.loss["ema"].value, board.loss["ema"].value)
    assert torch.equal(other.loss["trivial"].value, board.loss["trivial"].value)
    # as training saw it: the loss of the moving average at the end, on other draws
    value, error = board.total("ema")
    last = run.metrics[-1]
    assert value == pytest.approx(last["valid_ema"], abs=3 * (last["valid_high"] - last["valid_low"]) + 6 * error)
    moving = sf.board(run.path, data, samples=8, gradients=0, times="adaptive")
    assert "untrained form" in moving.notes[0] and moving.bins.width.max() == pytest.approx(30 / 8)
    given = sf.board(run.path, data, samples=8, gradients=0, times="logit-normal", weight="plain")
    assert not given.monotone
    with pytest.raises(sf.SfumatoError, match="has its own moving average"):
        sf.board(run.path, data, ema=denoiser())
    with pytest.raises(sf.SfumatoError, match="not rescaled|in the units|in those units"):
        sf.board(run.path, np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32))
