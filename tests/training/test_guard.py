"""What is not finite: skipped, named, rolled back, stopped; never in optimiser, averages or a checkpoint."""

import json
import math

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import nets, noise
from sfumato.cli import main
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, checkpoint, fit
from sfumato.training.guard import ROLLBACKS, STRIKES, finite
from sfumato.training.run import resume

DATA = noise.normal(3, range(60), (5,), noise.DATA)


class Bad(nn.Module):
    """Adds what is not finite to chosen training steps: to what is computed, or to the way back."""

    def __init__(self, steps, value=math.inf, backward=False) -> None:
        super().__init__()
        self.steps, self.value, self.backward, self.calls = set(steps), value, backward, 0

    def forward(self, x):
        # the search for the cause runs without gradients and must meet the same fault
        self.calls += torch.is_grad_enabled()
        if self.calls not in self.steps or not self.training:
            return x
        if not self.backward:
            return x + self.value
        return Spoil.apply(x)


class Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def model(bad: Bad) -> Denoiser:
    torch.manual_seed(0)
    net = nets.MLP(5, width=16, depth=2)
    net.extra = bad
    plain = net.forward
    net.forward = lambda x, level, **cond: net.extra(plain(x, level, **cond))
    return Denoiser(net, Gaussian(Flow()), "velocity")


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "batch": 7, "precision": "float32", "snapshots": 0, **changes})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Bad([3]), "the output of extra is not finite"),
        (Bad([3], math.nan), "the output of extra is not finite"),
        (Bad([3], backward=True), "the gradient of"),
    ],
)
def test_a_step_that_is_not_finite_is_skipped_and_named(bad, words):
    net, config = model(bad), settings()
    state = State(net, config)
    steps = fit(net, DATA, config, None, None, state)
    next(steps), next(steps)
    before = {name: value.clone() for name, value in state.tensors().items()}
    found = next(steps).incident
    assert words in found.where and found.step == 3 and found.samples == list(range(14, 21)) and len(found.rows) == 7
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    rest = list(steps)
    assert rest[-1].step == 12 and not any(p.incident for p in rest)
    assert all(finite(value) for value in state.tensors().values())


def test_the_start_has_no_part_in_the_average_though_the_first_steps_are_skipped():
    """They are counted as seen; the first that is taken replaces what the weights were."""
    net, config = model(Bad([1, 2])), settings()
    state = State(net, config)
    steps = fit(net, DATA, config, None, None, state)
    found = [next(steps) for _ in range(3)]
    assert [p.incident is None for p in found] == [False, False, True] and state.unseen == 14
    assert all(
        torch.equal(a, b) for a, b in zip(state.ema.state_dict().values(), net.net.state_dict().values(), strict=True)
    )


def test_without_a_way_back_the_loop_stops_after_some():
    net, config = model(Bad([3, 5, 6, 7])), settings()
    with pytest.raises(SfumatoError, match=f"{STRIKES} of .* steps were skipped; .* output"):
        list(fit(net, DATA, config))


def test_a_step_that_makes_weights_infinite_never_reaches_the_average():
    net, config = model(Bad([])), settings(lr=1e3, optimizer="adamw", clip=0, weight_decay=1e3, steps=40)
    state = State(net, config)
    with pytest.raises(SfumatoError, match="the step was too long|is not finite"):
        list(fit(net, DATA, config, None, None, state))
    assert all(finite(value) for value in state.ema.state_dict().values())


@pytest.fixture
def faulty(monkeypatch):
    """Training on a network with a fault at chosen calls."""

    def use(bad: Bad) -> Bad:
        built = nets.named

        def build(*given, **how):
            net = built(*given, **how)
            bad.calls = 0
            plain = net.forward

            def forward(x, level, **cond):
                if not net.training:
                    return plain(x, level, **cond)
                return bad(plain(x, level, **cond))

            net.forward = forward
            return net

        monkeypatch.setattr(nets, "named", build)
        return bad

    return use


def trained(tmp_path, **changes):
    how = {"steps": 12, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "sample_every": 0}
    return sf.train(DATA.numpy(), out=str(tmp_path / "run"), **{**how, **changes})


def test_one_incident_is_written_down_and_the_run_goes_on(faulty, tmp_path, capsys):
    faulty(Bad([4]))
    run = trained(tmp_path)
    (case,) = json.loads((run.path / "incident.json").read_text())
    assert case["step"] == 4 and case["rolled_back"] is None and len(case["samples"]) == 16
    assert "Step 4 was skipped" in capsys.readouterr().err
    assert run.metrics[-1]["done"] and all(finite(p) for p in run.denoiser.parameters())


def test_three_incidents_go_back_with_half_the_rate(faulty, tmp_path):
    faulty(Bad([4, 5, 6]))
    run = trained(tmp_path)
    cases = json.loads((run.path / "incident.json").read_text())
    assert [case["rolled_back"] for case in cases] == [None, None, 0]
    contract, _, _ = checkpoint.latest(run.path)
    assert contract["counters"]["slower"] == 0.5 and contract["counters"]["rollbacks"] == 1
    steps = [line["step"] for line in run.metrics]
    assert steps == sorted(set(steps)) and steps[-1] == 12  # the log has each step once


def test_a_run_that_cannot_go_on_stops_with_its_cause(faulty, tmp_path):
    faulty(Bad(range(1, 1000)))
    with pytest.raises(SfumatoError, match="the .*, again after 3 roll-backs"):
        trained(tmp_path)
    cases = json.loads((tmp_path / "run" / "incident.json").read_text())
    assert len(cases) == STRIKES * (ROLLBACKS + 1) and sum(c["rolled_back"] is not None for c in cases) == ROLLBACKS + 1
    _, tensors, _ = checkpoint.latest(tmp_path / "run")
    assert all(finite(value) for value in tensors.values())


def test_the_command_ends_with_a_sentence_and_a_status(faulty, tmp_path, capsys):
    faulty(Bad(range(1, 1000)))
    import numpy as np

    np.save(tmp_path / "x.npy", DATA.numpy())
    words = ["train", str(tmp_path / "x.npy"), "-o", str(tmp_path / "run"), "--steps", "20", "--net", "tiny"]
    assert main(words) == 2
    assert "sfumato: error: Training stopped at step" in capsys.readouterr().err


def test_a_resumed_run_remembers_its_incidents(faulty, tmp_path):
    bad = faulty(Bad([4]))
    run = trained(tmp_path)
    bad.steps = set()
    resume(run.path, data=DATA.numpy(), steps=16)
    assert len(json.loads((run.path / "incident.json").read_text())) == 1
