"""E1, gradients through sampling (DRaFT, 2309.17400; AlignProp, 2310.03739): the sampler as a deep recurrent network.

d R(Phi_theta(z)) / d theta of the whole walk or of its last K calls. For data N(theta, v) the flow's map is
Phi = alpha_s theta + (z - alpha_t theta) sd_s / sd_t, so that dPhi/dtheta = alpha_s - alpha_t sd_s / sd_t.
"""

import torch

import sfumato as sf


class Linear(torch.nn.Module):
    """E[x | z] = theta + alpha v / (alpha^2 v + sigma^2) (z - alpha theta)."""

    def __init__(self, process: sf.Gaussian, v: float) -> None:
        super().__init__()
        self.process, self.shape, self.v = process, (1,), v
        self.theta = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, z: torch.Tensor, t: float) -> sf.Estimate:
        alpha, sigma = self.process.schedule(t)
        x = self.theta + alpha * self.v / (alpha**2 * self.v + sigma**2) * (z - alpha * self.theta)
        return sf.Estimate(z, t, self.process.schedule, x=x)


def main() -> float:
    """The relative error of the gradient of the whole walk."""
    model, stop = Linear(sf.Gaussian(sf.schedules.LinearBeta()), 0.25), 0.05
    (a_t, s_t), (a_s, s_s) = model.process.schedule(1.0), model.process.schedule(stop)
    exact = float(a_s - a_t * torch.sqrt((a_s**2 * model.v + s_s**2) / (a_t**2 * model.v + s_t**2)))
    z = torch.randn(8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = {}
    for calls in (1, 4, 16, "all"):
        x = sf.sample(sf.differentiable(model, calls), z=z, steps=64, t_stop=stop)
        found[calls] = float(torch.autograd.grad(x.mean(), model.theta)[0])
        print(f"gradient of the last {calls!s:>3} of 64 calls: {found[calls]:.5f}   (exact, all: {exact:.5f})")
    for _ in range(20):  # what it is for: samples that a reward prefers, here those with mean 2
        x = sf.sample(sf.differentiable(model, 4), z=z, steps=12, t_stop=stop)
        (slope,) = torch.autograd.grad((x.mean() - 2).square(), model.theta)
        model.theta.data -= 0.5 * slope
    mean = float(x.detach().mean())
    print(f"after 20 steps on the reward -(mean - 2)^2, gradients of the last 4 calls: mean {mean:.3f}")
    return abs(found["all"] / exact - 1)


if __name__ == "__main__":
    main()
