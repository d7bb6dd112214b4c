"""M1, what z_1 still knows: L_T, the brightness it costs, and the rescaling that ends it (2305.08891, Algorithm 1).

L_T = 1/2 snr(1) |x|^2 with the prior N(0, sigma_1^2);   alpha' = (alpha - alpha_1) alpha_0 / (alpha_0 - alpha_1)
"""

import math

import torch

import sfumato as sf


def main() -> float:
    """Error of the mean brightness of samples, against the computed loss before the rescaling and 0 after it."""
    n, mean, spread, worst = 5000, 5.0, 0.8, 0.0
    truth = sf.exact.GaussianMixture([1.0], [[mean]], spread**2)
    for table in (sf.schedules.FromBetas.ddpm(), sf.schedules.FromBetas.scaled_linear()):
        for schedule in (table, sf.schedules.zero_terminal_snr(table)):
            process = sf.Gaussian(schedule)
            alpha, sigma = (float(c) for c in schedule(1.0))
            lost = alpha * mean * spread / math.hypot(alpha * spread, sigma)
            x = sf.sample(truth.denoiser(process), n, steps=20, seed=0)
            prior = float(sf.prior_kl(process, truth.sample(1000)).mean())
            print(
                f"snr(1) = {float(torch.exp(schedule.logsnr(1.0))):.1e}  L_T = {prior:.1e} nats  "
                f"brightness {float(x.mean()):.3f}, computed {mean - lost:.3f}, of the data {mean:.3f}"
            )
            worst = max(worst, abs(float(x.mean()) - (mean - lost)))
    return worst


if __name__ == "__main__":
    main()
