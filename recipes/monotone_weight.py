"""K3, a weight that never rises is an evidence bound of noised data (2303.00848, Theorem 1).

1/2 int w E|eps - eps_hat|^2 dlam = w(lo) (E_{p_w}[L(Lam)] - L(lo)),   p_w = -w' / w(lo), an atom w(hi)/w(lo) at hi
L(lam): of the exact model the mutual information I(x; z_lam)
"""

import math

import numpy as np
import torch

import sfumato as sf

LO, HI = -8.0, 6.0


def gauss(lo: float, hi: float, panels: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(n))
    edges = torch.linspace(lo, hi, panels + 1, dtype=torch.float64)
    half = edges.diff()[:, None] / 2
    return (edges[:-1, None] + (x + 1) * half).reshape(-1), (w * half).reshape(-1)


def main() -> float:
    """The largest relative difference between the two sides, for six weights."""
    law = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.2])
    z, dz = gauss(-9, 9, 48)

    def over_z(lam: torch.Tensor, error: bool) -> torch.Tensor:
        """E|eps - E[eps|z]|^2, or the information, at each level: an integral over z."""
        found = []
        for alpha, sigma in zip(torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt(), strict=True):
            log_prob = law.log_prob(z[:, None], alpha=alpha, sigma=sigma)
            if error:
                f = law.total_variance(z[:, None], alpha=alpha, sigma=sigma) * (alpha / sigma) ** 2
            else:
                f = -log_prob - 0.5 * torch.log(2 * math.pi * math.e * sigma**2)
            found.append((dz * log_prob.exp() * f).sum())
        return torch.stack(found)

    lam, share = gauss(LO, HI, 40)
    mmse, worst = over_z(lam, True), 0.0
    start = float(over_z(torch.tensor([LO], dtype=torch.float64), False)[0])
    for name in ("elbo", "v", "x-simple", "sigmoid", "sd3-cosmap", "eps-simple"):
        objective = sf.Objective(sf.schedules.LogLinear(LO, HI), weight=sf.weights.NAMED[name]())
        noise = objective.augmentation()
        left = 0.5 * float((share * objective.weight(lam) * mmse).sum())
        right = noise.scale * (noise.expect(lambda at: over_z(at, False)) - start)
        words = f"a law, {noise.atom:.0%} without noise" if objective.monotone else "no law: w rises"
        print(f"{name:<11} weighted loss {left:.12f}, noised bounds {right:.12f}; p_w is {words}")
        worst = max(worst, abs(right / left - 1))
    return worst


if __name__ == "__main__":
    main()
