"""L2 to L4, a policy learns from preferences or rewards: DPO (2311.12908), FPO (2507.21053), DDPO (2305.13301).

reference N(0, 1), reward -(x - 1)^2 / 2, beta = 1: the tilted law p e^r / Z is N(1/2, 1/2)

The policy is N(m, v) with two parameters. DPO hears 4,000 pairs whose winner has the odds of the rewards.
"""

import copy

import torch
from torch import nn

import sfumato as sf
from sfumato.objectives.loss import Batch
from sfumato.reinforce import Preferences, Reward
from sfumato.reinforce.losses import FlowPolicy, Preferred
from sfumato.reinforce.walks import StepPolicy


class Normal(nn.Module):
    """E[x|z] of N(m, v) under a variance-preserving schedule."""

    shape = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.m, self.log_v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z, level):
        alpha, v = torch.sigmoid(-8 * level).sqrt()[:, None], self.log_v.exp()
        return self.m + alpha * v / (alpha**2 * v + 1 - alpha**2) * (z - alpha * self.m)


def reward(x):
    return -((x - 1) ** 2).sum(1) / 2


def trained(loss, model, steps=120, size=128):
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
    return model.net.m.item(), model.net.log_v.exp().item()


def main() -> float:
    """The largest error of a mean or a variance."""
    start = sf.Denoiser(Normal(), sf.Gaussian("cosine", target="x"))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 1, generator=generator)
    first = (torch.rand(4000, generator=generator) < torch.sigmoid(reward(x) - reward(y)))[:, None]
    pairs = Preferences(start, torch.where(first, x, y), torch.where(first, y, x))
    losses = {
        "dpo": Preferred(start, pairs),
        "fpo": FlowPolicy(start, Reward(reward), every=10),
        "ddpo": StepPolicy(start, Reward(reward), every=10),
    }
    worst = 0.0
    for name, loss in losses.items():
        mean, variance = trained(loss, copy.deepcopy(start))
        print(f"{name:5} mean {mean:.3f}, variance {variance:.3f}; tilted law: 0.500, 0.500")
        worst = max(worst, abs(mean - 0.5), abs(variance - 0.5))
    return worst


if __name__ == "__main__":
    main()
