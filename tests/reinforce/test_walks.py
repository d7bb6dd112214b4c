"""Losses on steps of walks on N(0, 1) with the reward -(x - a)^2 / 2, whose tilt is N(a / 2, 1 / 2)."""

import copy

import pytest
import torch
from torch import Tensor

import sfumato as sf
from bandits import moments, policy, train
from sfumato.reinforce import walks
from sfumato.reinforce.feedback import Reward
from sfumato.reinforce.walks import AdjointMatching, StepPolicy

A = 1.0


def reward(x: Tensor) -> Tensor:
    return -((x - A) ** 2).sum(1) / 2


def test_steps_of_the_walk_find_the_tilt() -> None:
    reference = policy([0.0])
    loss = StepPolicy(copy.deepcopy(reference), Reward(reward), every=5, samples=512)
    found = moments(train(loss, policy([0.0]), 150))
    assert found == pytest.approx((A / 2, 0.5), abs=0.12)


def test_step_ratios_add_up_to_the_gaussian_one() -> None:
    """Of two policies whose steps are Gaussians with known means, by torch's own density."""
    model, old = policy([0.3]), policy([0.0])
    loss = StepPolicy(copy.deepcopy(old), Reward(reward), samples=16, calls=5)
    rows = torch.arange(16)
    z, after = loss.path[2], loss.path[3]
    t, s = loss.times[2], loss.times[3]
    laws = [torch.distributions.Normal(*loss.transition(each(z, t), s)) for each in (model, old)]
    true = (laws[0].log_prob(after) - laws[1].log_prob(after)).sum(1)
    assert torch.allclose(loss.step_ratio(model, old, rows, 2), true.float(), atol=1e-4)


def test_a_walk_keeps_the_law_and_forgets_its_start() -> None:
    """Of N(0, 1), in 20 calls; with eta = 0.3 the end remembers the start, so that a tilt cannot reach all of it."""
    loss = StepPolicy(policy([0.0]), Reward(reward), samples=8192)
    start, end = loss.path[0, :, 0], loss.path[-1, :, 0]
    assert float(end.mean()) == pytest.approx(0, abs=0.05) and float(end.var()) == pytest.approx(1, abs=0.07)
    assert abs(float(torch.corrcoef(torch.stack((start, end)))[0, 1])) < 0.05
    path = StepPolicy(policy([0.0]), Reward(reward), samples=8192, eta=0.3).path[:, :, 0]
    assert float(torch.corrcoef(path[[0, -1]])[0, 1]) > 0.5


def test_ratios_of_a_step_have_mean_one() -> None:
    """E[p / p_old] = 1 over steps of the old policy, also once the policy has moved."""
    model, old = policy([0.2]), policy([0.0])
    loss = StepPolicy(old, Reward(reward), samples=8192)
    for k in (5, 15):
        ratio = loss.step_ratio(model, old, torch.arange(8192), k).detach().exp()
        assert float(ratio.std()) > 0.01
        assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / 8192**0.5)


def test_log_probabilities_are_summed_over_elements() -> None:
    """Of samples (16, 3) of independent equal parts, three times the log-ratio of one, not their mean."""

    class Wide(torch.nn.Module):
        shape = (3,)

        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.tensor(shift))

        def forward(self, z: Tensor, level: Tensor) -> Tensor:
            return self.shift.expand_as(z)

    model, old = (sf.Denoiser(Wide(shift), sf.Gaussian("cosine", target="x")) for shift in (0.1, 0.0))
    loss = StepPolicy(old, Reward(lambda x: x[:, 0]), samples=16, calls=5)
    rows = torch.arange(16)
    z, after = loss.path[2], loss.path[3]
    laws = [
        torch.distributions.Normal(*loss.transition(each(z, loss.times[2]), loss.times[3])) for each in (model, old)
    ]
    parts = laws[0].log_prob(after) - laws[1].log_prob(after)
    assert torch.allclose(loss.step_ratio(model, old, rows, 2), parts.sum(1).float(), atol=1e-4)


def test_adjoint_matching_finds_the_tilt() -> None:
    loss = AdjointMatching(policy([0.0]), Reward(reward), samples=2048, every=10)
    found = moments(train(loss, policy([0.0]), 150))
    assert found[0] == pytest.approx(A / 2, rel=0.05) and found[1] == pytest.approx(0.5, rel=0.05)


def test_the_lean_adjoint_is_a_product_of_jacobians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of N(0, 1) each step is linear, z_s = c_k z_t: a of the state k is r'(x) c_k .. c_last."""
    monkeypatch.setattr(walks, "_PART", 3)  # of 8 walks
    old = policy([0.0])
    loss = AdjointMatching(old, Reward(reward), samples=8, calls=6)
    factor, x = 1.0, loss.path[-1]
    assert torch.allclose(loss.adjoint[-1], A - x)
    for k in range(5, 0, -1):
        one = torch.ones(1, 1)
        factor *= float(loss.transition(old(one, loss.times[k]), loss.times[k + 1])[0].detach())
        assert torch.allclose(loss.adjoint[k - 1], factor * (A - x), atol=1e-6)
    losses = loss.of_step(old, torch.arange(8), 2)
    _, std = loss.transition(old(loss.path[2], loss.times[2]), loss.times[3])
    assert torch.allclose(losses, float(std) ** 2 * loss.adjoint[2].square().sum(1) / 2, rtol=1e-4)


def test_walks_that_cannot_be() -> None:
    for make, said in (
        (lambda: StepPolicy(policy([0.0]), Reward(reward), eta=0), "0 < eta <= 1"),
        (lambda: StepPolicy(policy([0.0]), Reward(reward), calls=1), "calls >= 2"),
        (lambda: AdjointMatching(policy([0.0]), Reward(lambda x: x.detach()[:, 0])), "no gradient"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            make()
