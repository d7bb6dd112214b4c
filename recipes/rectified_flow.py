"""D2, rectified flow and reflow (2209.03003): a flow between two laws, and one trained on the pairs that it makes.

z = (1 - t) x + t x',   u = E[x' - x | z],   S = E int |u(z_t) - (z_1 - z_0)|^2 dt / E |z_1 - z_0|^2: 0 if all paths
are straight, so that one step of Euler's method is exact
"""

import torch

import sfumato as sf
from sfumato.exact import GaussianMixture, Pair
from sfumato.process import RectifiedFlow

PROCESS = RectifiedFlow(sf.schedules.Flow(), target="velocity")


@torch.no_grad()
def straightness(model, source, steps=20):
    """S of the paths from these sources, and where they end."""
    states = list(sf.trajectory(model, len(source), steps, "euler", input=source))
    z = torch.stack([state.z.double() for state in states])
    speed, whole = (z[:-1] - z[1:]) * steps, z[0] - z[-1]
    return float((speed - whole).square().mean() / whole.square().mean()), z[-1]


def main() -> float:
    """S after one reflow, as a share of S before."""
    modes = [[0.0, 4.0], [4.0, 0.0], [0.0, -4.0], [-4.0, 0.0]]
    pair = Pair.independent(GaussianMixture([1.0] * 4, modes, 0.2), GaussianMixture([1.0], [[0.0, 0.0]], 1.0))
    first = pair.model(PROCESS)
    source = pair.sample(4096)[1].float()
    before, x = straightness(first, source)
    torch.manual_seed(0)
    second = sf.Denoiser(sf.nets.MLP(2, 96, 3), PROCESS)
    optimizer = torch.optim.AdamW(second.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):  # on the first flow's own pairs
        rows = (torch.arange(256) + 256 * step) % len(x)
        loss = sf.denoising_loss(second, x[rows].float(), index=256 * step + torch.arange(256), input=source[rows])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        decay.step()
    after, _ = straightness(second, pair.sample(1000, seed=1)[1].float())
    print(f"straightness: {before:.3f} of the first flow, {after:.3f} after one reflow")
    return after / before


if __name__ == "__main__":
    main()
