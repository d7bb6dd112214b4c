"""Advantages within groups, and what one masked call does not hear."""

import copy
import math

import pytest
import torch
from torch import Tensor

import sfumato as sf
from bandits import Joint, Law, batch, moments, policy, train
from sfumato.reinforce.feedback import Reward
from sfumato.reinforce.groups import GroupPolicy, MaskedPolicy, grouped, one_step, relative


def reward(x: Tensor) -> Tensor:
    return -((x - 1) ** 2).sum(1) / 2


def test_what_a_condition_is_worth_drops_out() -> None:
    values, groups = torch.randn(12, dtype=torch.float64), torch.arange(12) % 3
    worth = torch.tensor([5.0, -2.0, 0.0], dtype=torch.float64)[groups]
    assert torch.allclose(relative(values + worth, groups), relative(values, groups))
    assert torch.allclose(relative(values, groups)[::3], values[::3] - values[::3].mean())
    scaled = relative(values, groups, normalise=True)
    assert all(float(scaled[groups == k].std(correction=0)) == pytest.approx(1) for k in range(3))
    assert torch.equal(relative(torch.ones(4), torch.zeros(4, dtype=torch.int64), normalise=True), torch.zeros(4))


def test_groups_are_of_one_class() -> None:
    rollouts = GroupPolicy(policy([0.0]), Reward(reward), samples=24, calls=2).rollouts
    assert grouped(rollouts, 12).tolist() == [0] * 12 + [1] * 12
    rollouts.classes = 3  # drawn in turn
    found = grouped(rollouts, 4)
    assert all(len(set((torch.arange(24) % 3)[found == k].tolist())) == 1 for k in range(6))
    assert torch.bincount(found).tolist() == [4] * 6


def test_flow_grpo_finds_the_tilt() -> None:
    loss = GroupPolicy(policy([0.0]), Reward(reward), every=5, samples=512, group=64)
    assert moments(train(loss, policy([0.0]), 150)) == pytest.approx((0.5, 0.5), abs=0.12)


def test_diffu_grpo_finds_the_tilt_of_one_symbol() -> None:
    nats = torch.tensor([0.0, 1.0, -0.5])
    start = sf.Denoiser(Law(3), sf.Masked("cosine", 3))
    loss = MaskedPolicy(copy.deepcopy(start), Reward(lambda x: nats[x[:, 0].long()]), samples=1024, group=256)
    model = train(loss, start, 120, size=256)
    assert torch.allclose(torch.softmax(model.net.logits, 0), torch.softmax(nats, 0), atol=0.06)


def test_one_step_is_biased_by_the_total_correlation() -> None:
    """Of an exact table: the mean of sum_i log p(x_i | masks) - log p(x) is minus the total correlation."""
    probs = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=torch.float64)
    table = sf.exact.Table(probs)
    model = table.denoiser(sf.Masked("cosine", 2))
    off = one_step(model, table.states) - table.log_prob(table.states)
    correlation = 2 * math.log(2) - table.entropy
    assert float((table.probs * off).sum()) == pytest.approx(-correlation, abs=1e-9) and correlation > 0.1


def test_a_reward_of_how_symbols_agree_is_heard_by_the_sequence_alone() -> None:
    """r = 1 where two fair bits are equal: their tilt is equal with probability e / (1 + e), and each stays fair."""
    found = {}
    for bound in ("sequence", "one-step"):
        start = sf.Denoiser(Joint(), sf.Masked("cosine", 2))
        equal = Reward(lambda x: (x[:, 0] == x[:, 1]).double())
        loss = MaskedPolicy(copy.deepcopy(start), equal, samples=1024, group=256, bound=bound)
        law = torch.softmax(train(loss, start, 120, size=256).net.logits.detach().flatten(), 0)
        found[bound] = float(law[0] + law[3])
    assert found["sequence"] == pytest.approx(math.e / (1 + math.e), abs=0.06)
    assert abs(found["one-step"] - 0.5) < 0.08


def test_mistakes() -> None:
    masks = sf.Denoiser(Law(3), sf.Masked("cosine", 3))
    loss = MaskedPolicy(masks, Reward(lambda x: x[:, 0].double()), samples=32)
    assert loss.losses(masks, batch(0, 8)).shape == (8,)
    for make, said in (
        (lambda: MaskedPolicy(masks, Reward(reward), bound="best"), "Unknown bound"),
        (lambda: MaskedPolicy(masks, Reward(reward), group=1), "at least 2"),
        (lambda: loss.suits(policy([0.0])), "masked"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            make()
