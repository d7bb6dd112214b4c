"""K5, noise levels drawn as the loss asks (2303.00848, App. F): p ~ EMA of the binned weighted loss; and the least
variance of all densities, p ~ E[l^2 | logsnr]^(1/2), l = w |eps - eps_hat|^2.

The loss divides by the p that a level was drawn under: unbiased while p moves, and every draw weighs the same.
"""

import torch

import sfumato as sf

BATCH, COUNT, SCHEDULE = 256, 80, sf.schedules.LogLinear(-8.0, 8.0)


class Optimal:
    """The exact denoiser where a network would stand."""

    def __init__(self, truth: sf.exact.GaussianMixture) -> None:
        self.truth, self.process = truth, sf.Gaussian(SCHEDULE)

    def __call__(self, z: torch.Tensor, t: torch.Tensor) -> sf.Estimate:
        return self.truth.denoiser(self.process)(z, t)


def main() -> float:
    """How far a tenth of the draws is from a tenth of the loss, at most, in parts of it; uniform t is off by more."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    model, weight, off = Optimal(truth), sf.weights.sigmoid(), 0.0
    densities = {"uniform": sf.times.uniform(), "adaptive": sf.times.adaptive(floor=0.01)}
    densities["variance-optimal"] = sf.times.variance_optimal(floor=0.01)
    x, u = truth.sample(10_000, seed=9), (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for name, density in densities.items():
        for k in range(COUNT):
            index = torch.arange(k * BATCH, (k + 1) * BATCH)
            logsnr = density.logsnr(density.levels(0, index, 0), SCHEDULE)
            batch = truth.sample(BATCH, seed=1, first=k * BATCH)
            losses = sf.denoising_loss(model, batch, SCHEDULE.time(logsnr), weight, density, index=index)
            density.observe(logsnr, losses)
        losses = sf.denoising_loss(model, x, SCHEDULE.time(density.logsnr(u, SCHEDULE)), weight, density, seed=2)
        tenths = losses.reshape(10, -1).mean(1) / losses.mean()
        print(
            f"{name:<17} loss {float(losses.mean()):.3f}, variance {float(losses.var()):.2f}; tenths of the draws give"
        )
        print("    " + " ".join(f"{float(v):.2f}" for v in tenths))
        if name == "adaptive":
            off = float((tenths - 1).abs().max())
    return off


if __name__ == "__main__":
    main()
