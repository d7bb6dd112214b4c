"""I5, the unCLIP pair (2204.06125): a prior p(e | y) and a decoder p(x | e) draw from p(x | y).

y ~ N(0, 1),   e = A y + n,   x = B e + m;   E[x | y] = B A y,   Cov(x | y) = B C_n B^T + C_m
"""

import torch

import sfumato as sf
from sfumato.conditions import EMBEDDING

PROCESS = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
A = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)  # of the embedding, two numbers
B = torch.tensor([[1.0, 0.3], [0.2, 0.8], [-0.5, 0.4]], dtype=torch.float64)  # of the picture, three
C_N, C_M = torch.diag(torch.tensor([0.5, 0.3], dtype=torch.float64)), 0.2 * torch.eye(3, dtype=torch.float64)


class Linear:
    """The exact denoiser of N(W c, cov) under a condition c."""

    process = PROCESS

    def __init__(self, name: str, weight: torch.Tensor, cov: torch.Tensor) -> None:
        self.name, self.weight, self.cov, self.shape = name, weight, cov, (len(cov),)

    def __call__(self, z: torch.Tensor, t: torch.Tensor, /, **cond: object) -> sf.Estimate:
        mean = cond[self.name].values.double() @ self.weight.T
        alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * torch.eye(len(self.cov)).double())
        return sf.Estimate(z, t, PROCESS.schedule, x=(mean + (z.double() - alpha * mean) @ gain.T).to(z))


def main() -> float:
    """The largest error of a mean and a covariance given y."""
    pair = sf.UnCLIP(Linear("y", A, C_N), Linear(EMBEDDING, B, C_M))
    cov, off = B @ C_N @ B.T + C_M, 0.0
    for y in (-2.0, 0.0, 1.0):
        x = sf.sample(pair, 20_000, 16, "heun", batch=20_000, y=torch.full((20_000, 1), y)).double()
        off = max(off, float((x.mean(0) - (B @ A)[:, 0] * y).abs().max()), float((x.T.cov() - cov).abs().max()))
        print(f"y = {y:+.0f}: mean {[round(v, 3) for v in x.mean(0).tolist()]}, exact "
              f"{[round(v, 3) for v in ((B @ A)[:, 0] * y).tolist()]}")  # fmt: skip
    return off


if __name__ == "__main__":
    main()
