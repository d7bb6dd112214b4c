"""H2, distillation of paths and of laws (2406.07507, 2311.18828): the same noise, or the same distribution.

paths: dX(z, t, s)/ds = u(X, s) of the teacher;   laws: the gradient of x is E[x|z_m] of the samples - D(z_m)
"""

import torch

import sfumato as sf
from sfumato.objectives.flow_maps import Lagrangian, walk
from sfumato.objectives.laws import DistributionMatching
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
    """The sliced distance of the sorted samples of one call to the data's quantiles, distilled by law."""
    teacher = LAW.denoiser(PROCESS)
    for calls in (1, 2, 4):
        plain = sf.sample(teacher, 1000, calls, seed=1)[:, 0].sort()[0]
        print(f"the teacher's default solver, {calls} calls: {off_quantiles(plain):.3f}")
    paths = trained(Lagrangian(teacher), 120)
    print(f"paths: {distance(paths, 1):.3f} on the same noise, {off_quantiles(samples(paths)):.3f} by quantiles")
    laws = trained(DistributionMatching(teacher, turns=3), 120)
    found = off_quantiles(samples(laws))
    print(f"laws:  {distance(laws, 1):.3f} on the same noise, {found:.3f} by quantiles")
    return found


@torch.no_grad()
def samples(student: sf.FlowMap) -> torch.Tensor:
    """A thousand samples of one call, sorted."""
    z = sf.noise.normal(1, torch.arange(1000), (1,))
    return walk(student, z, 1).double()[:, 0].sort()[0]


def off_quantiles(ordered: torch.Tensor) -> float:
    """The 2-Wasserstein distance of sorted samples to the law, by draws of it."""
    known = LAW.sample(100_000, seed=7)[:, 0].sort()[0].reshape(1000, 100).mean(1)
    return float((ordered.double() - known).square().mean().sqrt())


if __name__ == "__main__":
    main()
