"""H1, consistency (2303.01469, 2310.14189): the ends of neighbouring states of a path are one.

F(z, t, 0) = l F(z, t, m) + (1 - l) sg F(z_m, m, 0),   m near t,   z_m by a teacher's step or the sample's own x and eps
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
    """The distance in one call after distillation from the exact teacher, beside training from data alone."""
    ways = {
        "distillation": Semigroup(LAW.denoiser(PROCESS), "teacher", cut=0.1, ends="data", calls=(1, 2)),
        "training": Semigroup(None, "data", cut=0.1, ends="data", calls=(1, 2)),
    }
    found = {name: distance(trained(loss, 120), 1) for name, loss in ways.items()}
    for name, off in found.items():
        print(f"consistency {name:<12} {off:.3f} in one call")
    return found["distillation"]


if __name__ == "__main__":
    main()
