"""From eight Gaussians to two moons, beside torchcfm at the same budget: distance, path energy and time.

    W2      of 1,000 samples and 1,000 points of the moons (two sets of these are about 0.3 apart)
    NPE     |E int |u(z_t)|^2 dt - W2^2(q_0, q_1)| / W2^2(q_0, q_1): 0 if the paths are those of optimal transport

    S       int E|u(z_t) - (z_1 - z_0)|^2 dt / E|z_1 - z_0|^2: 0 if all paths are straight, and one step is enough

The protocol of the papers (2302.00482, Table 2): the same network, optimiser, steps and batch for all, the paths by 100
Euler steps; ours also in the peer's processor seconds, and after one reflow on POOL pairs of its own. The figures are
those of the last weights, which Adam moves at a constant rate, and, for both alike, of their moving average. Run it as
``python benchmarks/pairs.py`` with torchcfm importable for its rows, or in parts: ``--seeds 1 --couplings exact``.
Source: Tong et al. 2023 (2302.00482).
"""

from __future__ import annotations

import abc
import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import sfumato as sf
from record import HERE, kept
from sfumato.conditions import Conditions
from sfumato.objectives.couplings import Coupled
from sfumato.objectives.loss import Batch
from sfumato.objectives.losses import Denoising
from sfumato.objectives.times import UniformTime
from sfumato.process import RectifiedFlow
from sfumato.training.ema import exponent

BATCH, WIDTH, EULER, SHOWN, POOL = 256, 64, 100, 1000, 25_600
AVERAGED, INF = 0.06, float("inf")


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
    """The network of the papers: three hidden layers of 64, SELU, the time as one more input."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, WIDTH, WIDTH, WIDTH, 2)
        layers = [layer for a, b in zip(sizes[:-1], sizes[1:], strict=True) for layer in (nn.Linear(a, b), nn.SELU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self.layers(torch.cat((x, time[:, None]), 1))
        return found


class Timed(nn.Module):
    """The same network for a `Denoiser`, whose noise level is log(t / (1 - t)) / 4 on the linear path."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        found: Tensor = self.net(x, torch.sigmoid(4 * noise_level))
        return found


def w2(x: Tensor, y: Tensor) -> float:
    """W_2 of two equally large sets."""
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)


def figures(speed: Callable[[Tensor, float], Tensor]) -> dict[str, float]:
    """speed(z, s), s from 0 at the Gaussians to 1 at the moons."""
    generator = torch.Generator().manual_seed(99)
    start, end = gaussians(SHOWN, generator), moons(SHOWN, generator)
    with torch.no_grad():
        z, energy = path(speed, start)
        once = start + speed(start, 0.0)
    best, moved = w2(start, end) ** 2, float((z - start).square().sum(1).mean())
    return {
        "W2": w2(z, end),
        "NPE": abs(energy - best) / best,
        "S": energy / moved - 1,
        "W2 of one step": w2(once, end),
    }


def path(speed: Callable[[Tensor, float], Tensor], z: Tensor) -> tuple[Tensor, float]:
    """(the ends of the paths from z, their energy) by Euler steps."""
    energy = 0.0
    for k in range(EULER):
        u = speed(z, k / EULER)
        energy += float(u.square().sum(1).mean()) / EULER
        z = z + u / EULER
    return z, energy


class Run(abc.ABC):
    """One network and its training: `speed` is its velocity, `seconds` its processor time so far.

    average: of the weights so far, as `sf.train` makes it, of a window of AVERAGED of the run.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.net, self.seed, self.seconds = Net(), seed, 0.0
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-3)

    @abc.abstractmethod
    def speed(self, z: Tensor, s: float) -> Tensor:
        """The velocity at (z, s), like z."""

    @abc.abstractmethod
    def error(self, x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        """The loss of a batch."""

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Moons and Gaussians."""
        return moons(BATCH, self.generator), gaussians(BATCH, self.generator)

    def train(self, first: int, steps: int, most: float = INF) -> int:
        """Steps from `first` on, until there were `steps` or the processor time `most`; the number of the next."""
        began = time.process_time() - self.seconds
        power = exponent(AVERAGED) + 1
        for step in range(first, steps):
            index = BATCH * step + torch.arange(BATCH)
            self.optimizer.zero_grad()
            self.error(*self.batch(index), index).backward()
            self.optimizer.step()
            kept = (step / (step + 1)) ** power
            torch._foreach_lerp_(list(self.average.parameters()), [p.detach() for p in self.net.parameters()], 1 - kept)
            self.seconds = time.process_time() - began
            if self.seconds >= most:
                return step + 1
        return steps

    def judged(self) -> dict[str, float]:
        """The figures of the weights, and of their average."""
        found, own = figures(self.speed), copy.deepcopy(self.net.state_dict())
        self.net.load_state_dict(self.average.state_dict())
        averaged = figures(self.speed)
        self.net.load_state_dict(own)
        return found | {f"{name}, averaged": value for name, value in averaged.items()}


class Ours(Run):
    """A rectified flow with a coupling."""

    def __init__(self, coupling: str, seed: int) -> None:
        super().__init__(seed)
        self.model = sf.Denoiser(Timed(self.net), RectifiedFlow(sf.schedules.Flow(), target="velocity"))
        self.loss: Denoising = Coupled(UniformTime(), None, seed, coupling)

    def speed(self, z: Tensor, s: float) -> Tensor:
        velocity: Tensor = -self.model(z, 1 - s).velocity
        return velocity

    def error(self, x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        u = torch.rand(len(x), dtype=torch.float64)
        return self.loss.losses(self.model, Batch(x, Conditions({"input": source}), index, u)).mean()


class Reflow(Ours):
    """A second flow, trained on pairs that a first one made."""

    def __init__(self, first: Ours) -> None:
        super().__init__("independent", first.seed)
        self.loss = Denoising(UniformTime(), None, first.seed)
        self.source = gaussians(POOL, self.generator)
        with torch.no_grad():
            self.ends = path(first.speed, self.source)[0]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rows = index % POOL
        return self.ends[rows], self.source[rows]


class Theirs(Run):
    """A matcher of torchcfm."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(seed)
        import torchcfm.conditional_flow_matching as peer

        self.matcher = getattr(peer, name)(sigma=0.0)

    def speed(self, z: Tensor, s: float) -> Tensor:
        velocity: Tensor = self.net(z, torch.full((len(z),), s))
        return velocity

    def error(self, x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        t, z, u = self.matcher.sample_location_and_conditional_flow(source, x)
        return (self.net(z, t) - u).square().mean()


PEERS = {"exact": "ExactOptimalTransportConditionalFlowMatcher", "independent": "ConditionalFlowMatcher"}


def compared(coupling: str, steps: int, seed: int, most: float) -> Iterator[dict[str, Any]]:
    """The rows of a coupling: the peer, ours in the peer's processor time and after as many steps, and its reflow.

    most: the peer's processor time of an earlier run, in which it is not trained anew; 0 for none.
    """

    def row(name: str, run: Run, done: int) -> dict[str, Any]:
        found = {"row": name, "coupling": coupling, "seed": seed, "steps": done, "seconds": run.seconds}
        return found | run.judged()

    if not most:
        try:
            peer = Theirs(PEERS[coupling], seed)
            yield row("torchcfm", peer, peer.train(0, steps))
            most = peer.seconds
        except ImportError:
            print("torchcfm is not installed")
    run = Ours(coupling, seed)
    done = run.train(0, steps, most or INF)
    if most and run.seconds >= most:
        yield row("sfumato, in the time of torchcfm", run, done)
        run.train(done, steps)
    yield row("sfumato", run, steps)
    if most and run.seconds < most:
        yield row("sfumato, in the time of torchcfm", run, run.train(steps, 10 * steps, most))
    if coupling == "independent":
        second = Reflow(run)
        yield row("sfumato, after one reflow", second, second.train(0, steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--couplings", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seconds", type=float, default=0.0, help="of the peer, which is then not trained anew")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pairs.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for coupling in options.couplings:
            for row in compared(coupling, options.steps, seed, options.seconds):
                row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
                print(json.dumps(row), flush=True)
                kept(options.out, row, ("row", "coupling", "seed"))


if __name__ == "__main__":
    main()
