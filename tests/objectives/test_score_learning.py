"""A small network learns the score of a mixture by each way of score matching, to one stated error."""

import pytest
import torch
from torch import nn

from sfumato.exact import GaussianMixture
from sfumato.objectives.score_matching import denoising, explicit, implicit, sliced

SIGMA = 0.5
LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.4], [0.9, -0.2]], [0.25, 0.16])
NOISED = LAW.noised(1.0, SIGMA)

LOSSES = {
    "explicit": lambda score, x, eps, index: explicit(score, x + SIGMA * eps, NOISED.score(x + SIGMA * eps)),
    "implicit": lambda score, x, eps, index: implicit(score, x + SIGMA * eps),
    "sliced": lambda score, x, eps, index: sliced(score, x + SIGMA * eps, reduced=False, index=index),
    "reduced": lambda score, x, eps, index: sliced(score, x + SIGMA * eps, index=index),
    "denoising": lambda score, x, eps, index: denoising(score, x, SIGMA, eps=eps),
}


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))


def error(score):
    """sqrt(E|s - grad log p|^2 / E|grad log p|^2) on fresh samples of the noised law."""
    z = NOISED.sample(4000, seed=99)
    with torch.no_grad():
        off = 2 * explicit(score, z.float(), NOISED.score(z)).double()
    return float((off.mean() / NOISED.score(z).square().sum(1).mean()).sqrt())


def train(loss, steps, batch=256):
    score = perceptron()
    optimizer = torch.optim.Adam(score.parameters(), lr=5e-3)
    x = LAW.sample(steps * batch, seed=1).float()
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        rows = slice(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        loss(score, x[rows], eps[rows], torch.arange(rows.start, rows.stop)).mean().backward()
        optimizer.step()
    return score


# what 300 steps reach; a network of zeros has 1
LIMITS = {"explicit": 0.12, "implicit": 0.25, "sliced": 0.3, "reduced": 0.25, "denoising": 0.2}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns_the_score(name):
    assert error(perceptron()) > 0.7
    assert error(train(LOSSES[name], 300)) < LIMITS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_longer_training_comes_closer(name):
    assert error(train(LOSSES[name], 3000, 512)) < 0.05
