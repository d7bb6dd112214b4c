"""L3, a flow policy learns from rewards: advantage-weighted (2509.25050) and FPO++ (Yi et al. 2026).

reference p(a | s) = N(0, 1), reward -(a - 2 s)^2 / 2, beta = 1: the tilted law p e^r / Z is N(s, 1/2)

Reward less KL is largest for it, E[log Z] = -1/3 - log(2) / 2 = -0.68 for s uniform in (-1, 1); the reference has -7/6.
The policy is N(k s, v), as the denoiser of its law, with k and v to learn.
"""

import copy
import math

import torch
from torch import nn

import sfumato as sf
from sfumato.objectives.loss import Batch
from sfumato.reinforce import Environment, compare, explore
from sfumato.reinforce.losses import FlowPolicy


class Follow(Environment):
    """One action in a state: it should be twice the state."""

    def start(self, seed: int, index: torch.Tensor) -> torch.Tensor:
        return 2 * sf.noise.uniform(seed, index, (1,), sf.noise.DATA) - 1

    def step(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return state, -((action - 2 * state) ** 2)[:, 0] / 2


class Linear(nn.Module):
    """E[a | z, s] of N(k s, v) under a variance-preserving schedule."""

    shape = (1,)

    def __init__(self):
        super().__init__()
        self.k, self.log_v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z, level, state):
        alpha, v, mean = torch.sigmoid(-8 * level).sqrt()[:, None], self.log_v.exp(), self.k * state[:, None]
        return mean + alpha * v / (alpha**2 * v + 1 - alpha**2) * (z - alpha * mean)


def trained(loss, model, steps=200, size=128):
    optimizer = torch.optim.Adam(model.parameters(), 0.05, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for step in range(steps):
        index = torch.arange(step * size, (step + 1) * size)
        part = Batch(torch.zeros(size, 1), {}, index, (torch.arange(size, dtype=torch.float64) + 0.5) / size)
        optimizer.zero_grad()
        loss.losses(model, part).mean().backward()
        optimizer.step()
        decay.step()
        loss.observe(part, None)
    return model


def main() -> float:
    """The largest error of the mean or the variance of actions in three states."""
    spec = sf.data.DataSpec.fit(sf.data.open(explore(Follow(), 4096)))
    start = sf.Denoiser(Linear(), sf.Gaussian("cosine", target="x"), spec=spec)
    losses = {
        "advantage-weighted": FlowPolicy(start, Follow(), every=5, clip=None),
        "fpo++": FlowPolicy(start, Follow(), every=5, each=True),
    }
    worst = 0.0
    for name, loss in losses.items():
        model = trained(loss, copy.deepcopy(start))
        report = compare(model, start, Follow(), count=2048)
        before, after, kl = (each.value for each in (report.before, report.after, report.kl))
        print(f"{name}: reward {before:.3f} before, {after:.3f} after, KL {kl:.3f}")
        print(f"  reward less KL {after - kl:.3f}, of the tilted law {-1 / 3 - math.log(2) / 2:.3f}")
        for state in (-0.7, 0.0, 0.7):
            action = sf.sample(model, 2048, seed=1, state=[state])
            mean, variance = float(action.mean()), float(action.var())
            print(f"  state {state:4}: mean {mean:.3f} for {state}, variance {variance:.3f} for 0.5")
            worst = max(worst, abs(mean - state), abs(variance - 0.5))
    return worst


if __name__ == "__main__":
    main()
