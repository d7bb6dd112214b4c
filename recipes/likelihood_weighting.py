"""C12, likelihood weighting (2101.09258): with g^2 the score loss bounds the likelihood of the reverse SDE.

KL(p | p_SDE) <= KL(p_1 | pi) + 1/2 int g^2 E|s - s_model|^2 dt,   equal where s_model is the score of a diffused law q
with q_1 = pi (Theorem 2). In logsnr the weight g^2 is w = 1: the evidence bound.
"""

import numpy as np
import torch

import sfumato as sf


def kl(m: torch.Tensor, c: torch.Tensor, n: torch.Tensor, d: torch.Tensor) -> float:
    """KL(N(m, c) | N(n, d))."""
    gap, inverse = n - m, torch.linalg.inv(d)
    return 0.5 * float(torch.trace(inverse @ c) + gap @ inverse @ gap - len(m) + torch.logdet(d) - torch.logdet(c))


def main() -> float:
    """The largest difference between the bound and the exact KL where they must be equal, for three models."""
    schedule, eye = sf.schedules.LinearBeta(), torch.eye(2, dtype=torch.float64)
    objective = sf.Objective(schedule, "score", factor=lambda lam: schedule.diffusion(schedule.time(lam)))
    print(f"g^2 |s - s_hat|^2 with uniform t has the weight {objective.nearest().name!r}")
    m, c = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([[1.0, 0.3], [0.3, 0.4]], dtype=torch.float64)
    nodes, shares = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    t, dt = (nodes + 1) / 2, shares / 2
    worst = 0.0
    for shift, scale in ((0.0, 1.0), (0.2, 1.3), (-0.7, 0.5)):
        n, d = m + shift, scale * c + (scale - 1) ** 2 * eye
        loss = 0.0
        for at, share in zip(t, dt, strict=True):
            alpha, sigma = schedule(at)
            v, w = (torch.linalg.inv(alpha**2 * cov + sigma**2 * eye) for cov in (c, d))
            apart, off = v - w, w @ (alpha * (m - n))
            error = torch.trace(apart @ torch.linalg.inv(v) @ apart) + off @ off  # E|s - s_model|^2 under p_t
            loss += 0.5 * float(share * schedule.diffusion(at) * error)
        alpha, sigma = schedule(1.0)
        end = [(alpha * mean, alpha**2 * cov + sigma**2 * eye) for mean, cov in ((m, c), (n, d))]
        exact, bound = kl(m, c, n, d), loss + kl(*end[0], *end[1])
        # the same model started from N(0, 1): its law is q's reverse transition applied to that
        gain = alpha * d @ torch.linalg.inv(end[1][1])
        mean, cov = n - gain @ end[1][0], d - gain @ end[1][1] @ gain.T + gain @ gain.T
        print(
            f"model off by {shift:+.1f}, {scale:.1f}: KL {exact:.10f}, bound {bound:.10f}; "
            f"from N(0, 1): {kl(m, c, mean, cov):.6f} <= {loss + kl(*end[0], 0 * m, eye):.6f}"
        )
        worst = max(worst, abs(bound - exact))
    return worst


if __name__ == "__main__":
    main()
