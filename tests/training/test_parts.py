"""A batch in parts is the batch: accumulation, and what happens where memory does not suffice."""

import numpy as np
import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import nets, noise
from sfumato.diagnostics.validation import validator_for
from sfumato.machine import out_of_memory
from sfumato.model import Denoiser
from sfumato.objectives import times, weights
from sfumato.objectives.losses import Denoising
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit

DATA = noise.normal(3, range(60), (5,), noise.DATA, dtype=torch.float64)
LABELS = torch.arange(60) % 3


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(nets.MLP(5, width=16, depth=2, classes=3).double(), Gaussian(Flow()), "velocity")


def settings(**changes) -> TrainConfig:
    # AdamW: its steps are those of the gradient, where Muon's amplify the rounding of small ones
    return TrainConfig(**{"steps": 50, "batch": 16, "precision": "float32", "optimizer": "adamw", **changes})


def trained(config: TrainConfig, goal=None) -> tuple[State, list]:
    model = denoiser()
    state = State(model, config, goal)
    lines = list(fit(model, DATA, config, LABELS, (DATA[:16], LABELS[:16]), state))
    return state, lines


@pytest.mark.first(4)
@pytest.mark.parametrize("micro", [16, 8, 4, 3])
@pytest.mark.parametrize("density", [None, "adaptive"])
def test_accumulation_changes_nothing(micro, density):
    """50 steps in float64: equal rates and data, weights within 1e-5 (and nearer)."""

    def goal():
        return None if density is None else Denoising(times.NAMED[density](), weights.sigmoid(), 0)

    (whole, one), (parts, other) = trained(settings(), goal()), trained(settings(micro=micro), goal())
    assert whole.dtype == torch.float64
    assert [p.lr for p in one] == [p.lr for p in other] and one[-1].samples == other[-1].samples
    ours, theirs = whole.tensors(), parts.tensors()
    gap = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert gap < 1e-9
    assert one[-1].validation.best == pytest.approx(other[-1].validation.best, rel=1e-9)


class Small(nn.Module):
    """A network on a machine that holds no more than so many samples."""

    def __init__(self, net: nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most, self.seen = net, most, []

    def forward(self, x, level, **cond):
        if len(x) > self.most:
            # as torch's allocator says it
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried")
        self.seen.append(len(x))
        return self.net(x, level, **cond)


@pytest.mark.parametrize("most", [5, 1])
def test_sampling_and_validation_halve_their_parts_too(most):
    model, small = denoiser(), denoiser()
    small.net = Small(small.net, most)
    ours, theirs = (sample(each, z=DATA[:12], steps=4, label=1) for each in (model, small))
    assert torch.allclose(ours, theirs, atol=1e-12) and max(small.net.seen) <= most
    goal = Denoising(times.NAMED["uniform"](), None, 0)
    cond = {"label": LABELS}
    whole, parts = (validator_for(goal, each, DATA, cond, 16, 16).measure(each, None) for each in (model, small))
    assert whole.raw == pytest.approx(parts.raw, rel=1e-12) and max(small.net.seen) <= most


@pytest.mark.parametrize(("most", "parts"), [(9, 8), (2, 2), (1, 1)])
def test_out_of_memory_halves_the_parts_and_goes_on(most, parts):
    plain = denoiser()
    config = settings(steps=5)
    state = State(plain, config)
    list(fit(plain, DATA, config, LABELS, None, state))
    model = denoiser()
    model.net = Small(model.net, most)
    small = State(model, config)
    lines = list(fit(model, DATA, config, LABELS, None, small))
    assert small.micro == parts and lines[0].micro == parts and max(model.net.seen) == parts
    for (_, ours), (_, theirs) in zip(plain.net.named_parameters(), model.net.net.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_other_errors_are_not_hidden():
    model = denoiser()
    model.net = Small(model.net, 0)
    with pytest.raises(RuntimeError, match="not enough memory"):
        list(fit(model, DATA, settings(), LABELS))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_memory_that_a_machine_does_not_have_is_known_by_its_real_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_marginal_symbols_are_redrawn_as_often_as_they_occur(tmp_path):
    x = np.repeat([0, 1, 2, 2, 2], 20).reshape(-1, 1)
    run = sf.train(x, tmp_path / "run", process="marginal", net="tiny", steps=2, batch=4)
    weights = sf.load(run.path).process.weights
    assert weights[2] > 2 * weights[0] > 0 and sum(weights) == pytest.approx(1)
    with pytest.raises(sf.SfumatoError, match="must be integers from 0"):
        sf.train(np.random.default_rng(0).normal(size=(50, 2)), tmp_path / "no", process="marginal", steps=2)
