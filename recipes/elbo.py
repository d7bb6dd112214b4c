"""A6, the continuous-time bound (2107.00630): it knows the ends of the schedule alone, and its gap is computable.

-log p(x) <= KL(q(z_1|x) || prior) + 1/2 int E|eps - eps_hat|^2 dlogsnr - E log p(x|z_0)
"""

import math

import torch

import sfumato as sf

truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.05, 0.1])


class Bent:
    """The exact model with E[eps|z] off by 0.3 in each number, below logsnr 4."""

    def __init__(self, inner: sf.exact.ExactDenoiser) -> None:
        self.inner, self.process, self.shape = inner, inner.process, inner.shape

    def __call__(self, z: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> sf.Estimate:
        lam = self.process.schedule.logsnr(t).reshape(-1, 1)
        off = 0.3 * ((lam < 4) & (lam > -4))
        return sf.Estimate(z, t, self.process.schedule, eps=self.inner(z, t).eps + off)


def main(n: int = 500) -> float:
    """How far the bound of the bent model is from its closed form, in standard errors of a hundredth nat."""
    curves = sf.schedules.VE(0.01, 100.0), sf.schedules.EDM(0.01, 100.0), sf.schedules.LogLinear(-2 * math.log(100), 12)
    x = truth.sample(n, seed=1)
    for curve in curves:
        found = sf.log_prob(truth.denoiser(sf.Gaussian(curve)), x, "elbo", sigma_min=0.02)
        print(f"{type(curve).__name__:>10}: {found.value.mean():.10f} nats, exactly {truth.log_prob(x).mean():.4f}")
    model = truth.denoiser(sf.Gaussian(curves[2]))
    flow = sf.log_prob(model, x[:100], steps=16).value - sf.log_prob(model, x[:100], "elbo").value
    print(f"exact model: ode - elbo = {flow.mean():.4f} +- {flow.std() / 10:.4f}")
    for particles in (1, 8):
        many = sf.log_prob(model, x[:100], "importance", 24, particles=particles)
        print(f"{particles} trajectories of 24 steps: {(many.value - truth.log_prob(x[:100])).mean():.3f} from log p")
    gap, expected = sf.bound_gap(Bent(model), truth, n), 0.5 * 2 * 0.3**2 * 8
    below = truth.log_prob(x) - sf.log_prob(Bent(model), x, "elbo").value
    print(f"bent model: log p - elbo = {below.mean():.4f} +- {below.std() / n**0.5:.4f}, in closed form {expected:.4f}")
    print("its parts: " + ", ".join(f"{name} {part.value:.4f}" for name, part in gap._asdict().items()))
    return abs(gap.total.value - expected)


if __name__ == "__main__":
    main()
