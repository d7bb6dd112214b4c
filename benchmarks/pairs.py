"""From eight Gaussians to two moons, beside torchcfm at the same budget: distance, path energy and time.

    W2      of 1,000 samples and 1,000 points of the moons (two sets of these are about 0.3 apart)
    NPE     |E int |u(z_t)|^2 dt - W2^2(q_0, q_1)| / W2^2(q_0, q_1): 0 if the paths are those of optimal transport

The protocol of the papers (2302.00482, Table 2): the same network, optimiser, steps and batch for all, the paths by 100
Euler steps. Run it as ``python benchmarks/pairs.py --steps 20000`` (the papers' figure), with torchcfm importable for
its rows. Source: Tong et al. 2023 (2302.00482).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.objectives.couplings import Coupled
from sfumato.objectives.loss import Batch
from sfumato.objectives.times import UniformTime
from sfumato.process import RectifiedFlow

BATCH, WIDTH, EULER, SHOWN = 256, 64, 100, 1000


def gaussians(n: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians of variance 0.1 on a circle of radius 5."""
    angle = torch.randint(0, 8, (n,), generator=generator) * (torch.pi / 4)
    centre = 5 * torch.stack((angle.cos(), angle.sin()), 1)
    return centre + 0.1**0.5 * torch.randn(n, 2, generator=generator)


def moons(n: int, generator: torch.Generator) -> Tensor:
    """Two half circles with noise 0.2, times 3, less 1."""
    upper = torch.rand(n, generator=generator) < 0.5
    angle = torch.pi * torch.rand(n, generator=generator)
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return 3 * (torch.stack((x, y), 1) + 0.2 * torch.randn(n, 2, generator=generator)) - 1


class Net(nn.Module):
    """The network of the papers: three hidden layers of 64, SELU, the time (or the noise level) as one more input."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, WIDTH, WIDTH, WIDTH, 2)
        layers = [layer for a, b in zip(sizes[:-1], sizes[1:], strict=True) for layer in (nn.Linear(a, b), nn.SELU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        return self.layers(torch.cat((x, noise_level[:, None]), 1))


def w2(x: Tensor, y: Tensor) -> float:
    """W_2 of two equally large sets."""
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)


def judged(speed: Callable[[Tensor, float], Tensor]) -> dict[str, float]:
    """speed(z, s), s from 0 at the Gaussians to 1 at the moons."""
    generator = torch.Generator().manual_seed(99)
    start, end = gaussians(SHOWN, generator), moons(SHOWN, generator)
    z, energy = start, 0.0
    with torch.no_grad():
        for k in range(EULER):
            u = speed(z, k / EULER)
            energy += float(u.square().sum(1).mean()) / EULER
            z = z + u / EULER
    best = w2(start, end) ** 2
    return {"W2": w2(z, end), "NPE": abs(energy - best) / best}


def ours(coupling: str, steps: int, seed: int) -> tuple[Callable[[Tensor, float], Tensor], float]:
    """(velocity, seconds) of a rectified flow with a coupling."""
    net, flow = fresh(seed), RectifiedFlow(sf.schedules.Flow(), target="velocity")
    model, loss = sf.Denoiser(net, flow), Coupled(UniformTime(), None, seed, coupling)

    def error(x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        u = torch.rand(len(x), dtype=torch.float64)
        return loss.losses(model, Batch(x, Conditions({"input": source}), index, u)).mean()

    return lambda z, s: -model(z, 1 - s).velocity, trained(net, error, steps, seed)


def theirs(name: str, steps: int, seed: int) -> tuple[Callable[[Tensor, float], Tensor], float]:
    """(velocity, seconds) of a matcher of torchcfm."""
    import torchcfm.conditional_flow_matching as peer

    net, matcher = fresh(seed), getattr(peer, name)(sigma=0.0)

    def error(x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        t, z, u = matcher.sample_location_and_conditional_flow(source, x)
        return (net(z, t) - u).square().mean()

    return lambda z, s: net(z, torch.full((len(z),), s)), trained(net, error, steps, seed)


def fresh(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def trained(net: Net, error: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int, seed: int) -> float:
    """Train in place; processor seconds."""
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(net.parameters(), 1e-3)
    began = time.process_time()
    for step in range(steps):
        x, source = moons(BATCH, generator), gaussians(BATCH, generator)
        optimizer.zero_grad()
        error(x, source, BATCH * step + torch.arange(BATCH)).backward()
        optimizer.step()
    return time.process_time() - began


ROWS: dict[str, tuple[Any, str]] = {
    "sfumato, exact": (ours, "exact"),
    "sfumato, independent": (ours, "independent"),
    "torchcfm, OT-CFM": (theirs, "ExactOptimalTransportConditionalFlowMatcher"),
    "torchcfm, I-CFM": (theirs, "ConditionalFlowMatcher"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.rows:
        method, how = ROWS[name]
        try:
            speed, seconds = method(how, options.steps, options.seed)
        except ImportError:
            print(f"{name}: not installed")
            continue
        found = {"row": name, "steps": options.steps, "seed": options.seed, "seconds": seconds, **judged(speed)}
        print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}))


if __name__ == "__main__":
    main()
