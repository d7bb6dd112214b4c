"""H6, shortcut models (2410.12557): one step is two steps of half its length, learned from data alone.

F(z, t, s) = sg[F(z, t, m) + F(z_m, m, s)] / 2,   theta_m = (theta_t + theta_s) / 2,   F(z, t, t) from x and eps
"""

import torch

import sfumato as sf
from sfumato.objectives.flow_maps import Semigroup, walk
from sfumato.training import TrainConfig, fit

LAW = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.1]], [[0.1]]])
PROCESS = sf.Gaussian("cosine", target="F")


def trained(loss: torch.nn.Module, steps: int) -> sf.FlowMap:
    """A map of two modes on a line after so many steps."""
    torch.manual_seed(0)
    student = sf.FlowMap.student(sf.Denoiser(sf.nets.MLP(1, 32, 2), PROCESS))
    config = TrainConfig(steps=steps, batch=128, precision="float32", snapshots=0)
    for _ in fit(student, LAW.sample(4096, 0).float(), config, loss=loss):
        pass
    return student


@torch.no_grad()
def distance(student: sf.FlowMap, calls: int) -> float:
    """The root mean square distance of samples to the exact flow's on the same noise, over that of the data."""
    z = sf.noise.normal(1, torch.arange(1000), (1,), dtype=torch.float64)
    exact = LAW.flow_between(z, PROCESS.schedule(1.0), (1.0, 0.0))
    found = walk(student, z.float(), calls).double()
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def main() -> float:
    """The distance in four calls."""
    student = trained(Semigroup(cut=0.5, diagonal=0.5), 150)
    found = {calls: distance(student, calls) for calls in (1, 2, 4)}
    print(", ".join(f"{calls} calls {off:.3f}" for calls, off in found.items()))
    return found[4]


if __name__ == "__main__":
    main()
