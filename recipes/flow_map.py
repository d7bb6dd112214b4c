"""Flow maps (2406.07507, 2505.18825): X(z, t, s) in one call; H1, H2, H6 are cuts of one identity.

F(z, t, s) = l F(z, t, m) + (1 - l) F(z_m, m, s),   z_m = X(z, t, m),   l = (theta_t - theta_m) / (theta_t - theta_s)
"""

import torch

import sfumato as sf
from sfumato.flow_map import FlowMap
from sfumato.objectives.flow_maps import step
from sfumato.process.angles import angle, unit

LAW = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.1]], [[0.1]]])


def main() -> float:
    """How far the identity is from holding for the exact map, and 64 steps of a teacher's from being that map."""
    process, teacher = sf.Gaussian("cosine"), LAW.denoiser(sf.Gaussian("cosine"))
    t, m, s = (torch.tensor(value, dtype=torch.float64).expand(64) for value in (0.9, 0.5, 0.1))
    z = process.corrupt(
        LAW.sample(64, 0), t, sf.noise.normal(0, torch.arange(64), (1,), sf.noise.TRAIN_NOISE, dtype=torch.float64)
    )

    def mean(z: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        end = LAW.flow_between(z, process.schedule(t), process.schedule(s))
        return (unit(process, end, s) - unit(process, z, t)) / (angle(process, t) - angle(process, s))[:, None]

    part = ((angle(process, t) - angle(process, m)) / (angle(process, t) - angle(process, s)))[:, None]
    middle = LAW.flow_between(z, process.schedule(t), process.schedule(m))
    identity = float((part * mean(z, t, m) + (1 - part) * mean(middle, m, s) - mean(z, t, s)).abs().max())
    solved = float((step(teacher, z, t, s, 64) - mean(z, t, s)).abs().max())
    print(f"semigroup identity: {identity:.1e}; 64 steps of the teacher: {solved:.1e}")

    student = FlowMap.student(sf.Denoiser(sf.nets.MLP(1, 32, 1), sf.Gaussian("cosine", target="F")))
    start = student(z.float(), 0.9, until=0.9).to(0.9).detach()
    print(f"X(z, t, t) = z of a network that has learned nothing: {float((start - z).abs().max()):.1e}")
    return identity + solved + float((start - z).abs().max())


if __name__ == "__main__":
    main()
