"""H6, MeanFlow (2505.13447): the mean of F over a path is F at its start less what it changes along the flow.

F(z, t, s) = f - (theta_t - theta_s) dF/dtheta_t,   f = F(z, t),   dw/dtheta = -f
"""

import torch

import sfumato as sf
from sfumato.objectives.angle_derivatives import derivative
from sfumato.process.angles import angle, moved, unit

LAW = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.1]], [[0.1]]])
PROCESS = sf.Gaussian("cosine", target="F")


class Exact:
    """The exact map of the law, as the mean of F over a path."""

    process = PROCESS

    def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        end = LAW.flow_between(z, PROCESS.schedule(t), PROCESS.schedule(s))
        return (unit(PROCESS, end, s) - unit(PROCESS, z, t)) / (angle(PROCESS, t) - angle(PROCESS, s))[:, None]


def main() -> float:
    """How far the identity is from holding for the exact map, with a central difference along the flow."""
    model, t, s = Exact(), torch.full((64,), 0.7, dtype=torch.float64), torch.full((64,), 0.1, dtype=torch.float64)
    z = LAW.sample(64, 0, process=PROCESS, t=0.7)
    f = LAW.denoiser(PROCESS)(z, t).F
    theta = angle(PROCESS, t)
    change = derivative(model, theta, lambda there: model.mean(moved(PROCESS, z, t, there, f), there, s))
    off = float((f - (theta - angle(PROCESS, s))[:, None] * change - model.mean(z, t, s)).abs().max())
    print(f"MeanFlow's identity for the exact map: {off:.1e}")

    torch.manual_seed(0)
    student = sf.FlowMap.student(sf.Denoiser(sf.nets.MLP(1, 32, 1), PROCESS))
    for parameter in student.inner.net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        difference, product = (
            derivative(student, theta, lambda there: student.mean(z.float(), there, s), by)
            for by in ("difference", "jvp")
        )
    apart = float((difference - product).norm() / product.norm())
    print(f"a difference is from the Jacobian-vector product by {apart:.1e}")
    return off


if __name__ == "__main__":
    main()
