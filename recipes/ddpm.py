"""A4, DDPM (2006.11239): ancestral sampling tends to the data's law, and L_simple to the posterior's covariance.

z_s = a sigma_s^2 / sigma_t^2 z_t + alpha_s c^2 / sigma_t^2 x + std xi,      L = E |eps - eps_hat|^2
"""

import torch

import sfumato as sf

truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [0.04, 0.09])
process = sf.Gaussian(sf.schedules.LinearBeta())


def distance(z: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's distance between samples (n, 1) and the mixture."""
    z = z.flatten().double().sort().values
    parts = [w * torch.special.ndtr((z - m) / s) for w, m, s in ((0.3, -1.0, 0.2), (0.7, 1.0, 0.3))]
    rank = torch.arange(len(z) + 1, dtype=torch.float64) / len(z)
    cdf = parts[0] + parts[1]
    return float(torch.maximum((cdf - rank[:-1]).abs(), (cdf - rank[1:]).abs()).max())


def main() -> float:
    """The distance after 400 steps."""
    n = 4000
    for steps in (10, 40, 100, 400):
        found = distance(sf.sample(truth.denoiser(process), n, steps, sf.solvers.DDPM(), batch=n))
        print(f"{steps:4d} steps: distance {found:.4f} (1.63 / sqrt(n) = {1.63 / n**0.5:.4f} at 99 %)")
    t, x = torch.full((n,), 0.5), truth.sample(n, seed=1)
    alpha, sigma = process.schedule(0.5)
    eps = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = (truth.denoiser(process)(process.corrupt(x, t, eps), t).eps - eps).square().mean()
    floor, error = truth.mmse(n, seed=2, process=process, t=0.5)
    scale = float(alpha / sigma) ** 2
    print(f"L_simple at t = 0.5: {loss:.4f}; its floor E tr Cov(eps|z) = {scale * floor:.4f} +- {scale * error:.4f}")
    return found


if __name__ == "__main__":
    main()
