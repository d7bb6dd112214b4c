"""A9, targets of less variance: E[x|z] of a teacher (loss floor 0), E[x | z, set] of a reference batch (2302.00670).

|x - D|^2 = |E[x|z] - D|^2 + tr Cov(x|z);   x^ = sum_i r_i x_i,   r_i ~ N(z; alpha x_i, sigma^2)
"""

import torch

import sfumato as sf


class Student:
    """D(z) = E[x|z] + theta_i tanh(z): the optimum is theta = 0, where the gradient's mean is 0."""

    def __init__(self, truth: sf.exact.GaussianMixture, n: int) -> None:
        self.truth, self.process = truth, sf.Gaussian(sf.schedules.Cosine())
        self.theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)

    def __call__(self, z: torch.Tensor, t: torch.Tensor) -> sf.Estimate:
        x = self.truth.denoiser(self.process)(z, t).x + self.theta * torch.tanh(z)
        return sf.Estimate(z, t, self.process.schedule, x=x)


def main() -> float:
    """The standard deviation of a sample's gradient at the optimum with an exact teacher, over that without."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    n = 1000
    x = truth.sample(n, seed=1)
    student = Student(truth, n)
    targets = {
        "one sample": None,
        "stable target, 16 others": sf.StableTarget(truth.sample(20_000, seed=2), 16),
        "stable target, 1024 others": sf.StableTarget(truth.sample(20_000, seed=2), 1024),
        "exact teacher": sf.Teacher(truth.denoiser(student.process)),
    }
    spread = {}
    for name, clean in targets.items():
        loss = sf.denoising_loss(
            student, x, weight=sf.weights.sigmoid(), times=sf.times.logit_normal(), seed=3, clean=clean
        )
        (gradient,) = torch.autograd.grad(loss.sum(), student.theta)
        spread[name] = float(gradient.std())
        print(f"{name:<27} loss {float(loss.detach().mean()):.4f}, gradient's deviation {spread[name]:.2e}")
    return spread["exact teacher"] / spread["one sample"]


if __name__ == "__main__":
    main()
