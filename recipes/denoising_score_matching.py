"""B3, denoising score matching (Vincent 2011): the score of one noise level from pairs of x and eps, up to a constant.

1/2 E|s(z) + eps / sigma|^2 = 1/2 E|s - grad log p|^2 + 1/2 (D / sigma^2 - E|grad log p|^2),   z = x + sigma eps
"""

import math

import torch
from torch import nn

import sfumato as sf

denoising, explicit = sf.score_matching.denoising, sf.score_matching.explicit


def main() -> float:
    """How far the constant of a trained network is from the closed form."""
    torch.manual_seed(0)
    sigma, truth = 0.6, sf.exact.GaussianMixture([0.4, 0.6], [[-1.0], [0.7]], [0.2, 0.4])
    noised = truth.noised(1.0, sigma)
    score = nn.Sequential(nn.Linear(1, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    optimizer, steps, batch = torch.optim.Adam(score.parameters(), lr=5e-3), 600, 256
    x = truth.sample(steps * batch, seed=1).float()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        index = torch.arange(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        denoising(score, x[index], sigma, index=index).mean().backward()
        optimizer.step()
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    x, eps = torch.cartesian_prod(axis, axis)[:, :, None].unbind(1)
    pairs = (truth.log_prob(x) - eps[:, 0].square() / 2).exp() / math.sqrt(2 * math.pi) * float(axis[1] - axis[0]) ** 2
    with torch.no_grad():
        z, score = x + sigma * eps, score.double()
        true = noised.score(z)
        losses = [
            float((pairs * loss).sum()) for loss in (denoising(score, x, sigma, eps=eps), explicit(score, z, true))
        ]
        fisher = float((pairs * true.square().sum(1)).sum())
    constant = 0.5 * (1 / sigma**2 - fisher)
    print(f"error of the learned score: {math.sqrt(2 * losses[1] / fisher):.3f} of its size")
    print(
        f"denoising {losses[0]:.6f} - explicit {losses[1]:.6f} = {losses[0] - losses[1]:.6f}; constant {constant:.6f}"
    )
    return abs(losses[0] - losses[1] - constant)


if __name__ == "__main__":
    main()
