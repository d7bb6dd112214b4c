"""H6, MeanFlow (2505.13447): the mean of F over a path from its derivative along the flow, by differences or products.

F(z, t, s) = f - (theta_t - theta_s) dF/dtheta_t,   dw/dtheta = -f
"""

import torch

import sfumato as sf
from sfumato.objectives.flow_maps import MeanFlow, walk
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
    """The distance in one call with a teacher's f, whose derivatives are Jacobian-vector products."""
    found = {}
    for way in ("difference", "jvp"):
        found[way] = distance(trained(MeanFlow(LAW.denoiser(PROCESS), by=way), 100), 1)
        print(f"derivatives by {way:<10} {found[way]:.3f} in one call")
    return found["jvp"]


if __name__ == "__main__":
    main()
