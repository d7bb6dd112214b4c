"""Systematic resampling against its definition, and the effective sample size in its two limits."""

import torch

from sfumato import particles


def test_each_particle_survives_as_often_as_its_weight_says() -> None:
    draw = torch.Generator().manual_seed(0)
    log_weights = torch.randn(3, 50, generator=draw, dtype=torch.float64) * 2
    share = log_weights.softmax(1)
    taken = torch.zeros(3, 50, dtype=torch.float64)
    for u in (torch.arange(400, dtype=torch.float64) + 0.5) / 400:
        index = particles.systematic(log_weights, u.expand(3))
        assert (index.diff(dim=1) >= 0).all()
        counts = torch.stack([row.bincount(minlength=50) for row in index]).double()
        assert ((counts - 50 * share).abs() < 1).all()
        taken += counts / 400
    assert (taken - 50 * share).abs().max() < 5e-3


def test_groups_do_not_mix_and_limits_are_kept() -> None:
    log_weights = torch.zeros(2, 8)
    log_weights[1] = -torch.inf
    log_weights[1, 3] = 700.0
    index = particles.systematic(log_weights, torch.tensor([0.5, 0.99]))
    assert index[0].tolist() == list(range(8))
    assert index[1].tolist() == [3] * 8
    assert torch.allclose(particles.effective(log_weights), torch.tensor([8.0, 1.0], dtype=torch.float64))
    assert torch.allclose(particles.log_mean(log_weights), torch.tensor([0.0, 700 - 2.0794415], dtype=torch.float64))
