"""K7, VDM's learned schedule (2107.00630, App. H and I.2): a monotone network draws logsnr, trained for low variance.

logsnr(u) = hi - (hi - lo) g(u),   min over g of E (l / p)^2;   the ends alone decide the expected loss
"""

import torch

import sfumato as sf
from sfumato.objectives.learned import Learned

N, SCHEDULE = 256, sf.schedules.LogLinear(-8.0, 8.0)


def main() -> float:
    """E (l / p)^2 over its least, less 1, where data are N(0, I) in the plane: l = w |eps - eps_hat|^2 is known."""
    weight, density = sf.weights.sigmoid(), Learned(width=16, lr=0.05)

    def second(logsnr: torch.Tensor) -> torch.Tensor:
        # eps - eps_hat is Gaussian of variance sigmoid(logsnr) in each of 2 dimensions: E of the fourth power is 8 v^2
        return 8 * (0.5 * weight(logsnr) * torch.sigmoid(logsnr)) ** 2

    lam = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    least = float(torch.trapezoid(second(lam).sqrt(), lam)) ** 2
    for k in range(200):
        index = torch.arange(k * N, (k + 1) * N)
        logsnr = density.logsnr(density.levels(0, index, 0), SCHEDULE)
        noise = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        loss = 0.5 * weight(logsnr) * torch.sigmoid(logsnr) * noise.square().sum(1)
        density.observe(logsnr, loss / density.density(logsnr, SCHEDULE))
        if k % 50 == 49:
            found = float(torch.trapezoid(second(lam) / density.density(lam, SCHEDULE), lam))
            print(f"after {k + 1} batches: E (l/p)^2 = {found:.3f}, the least is {least:.3f}")
    frozen = density.frozen(SCHEDULE)
    ends = frozen.logsnr_range
    print(f"frozen into a table of {len(frozen.values)} values, {ends[1]:g} to {ends[0]:g}: {frozen.config()['name']}")
    return found / least - 1


if __name__ == "__main__":
    main()
