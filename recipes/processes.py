"""C1, C2, C3: variance-preserving, -exploding and sub-VP SDEs (2011.13456) are three curves (alpha, sigma).

dz = f z dt + g dw,   f = d log alpha / dt,   g^2 = -sigma^2 dlogsnr/dt
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest error of the walks' mean and standard deviation at t = 0.8, against alpha and sigma."""
    generator, n, steps = torch.Generator().manual_seed(0), 20_000, 800
    worst = 0.0
    for schedule in (sf.schedules.LinearBeta(), sf.schedules.VE(sigma_max=5.0), sf.schedules.SubVP()):
        times = torch.linspace(1e-3, 0.8, steps + 1, dtype=torch.float64)
        alpha, sigma = schedule(times[0])
        z = alpha * 1.0 + sigma * torch.randn(n, generator=generator, dtype=torch.float64)  # x = 1
        for t, dt in zip(times[:-1], times.diff(), strict=True):
            middle, dw = t + dt / 2, dt.sqrt() * torch.randn(n, generator=generator, dtype=torch.float64)
            z = z + schedule.drift(middle) * z * dt + schedule.diffusion(middle).sqrt() * dw
        alpha, sigma = schedule(0.8)
        name = type(schedule).__name__
        print(f"{name:>10}: mean {z.mean():.4f} (alpha {alpha:.4f}), std {z.std():.4f} (sigma {sigma:.4f})")
        worst = max(worst, abs(float((z.mean() - alpha) / sigma)), abs(float(z.std() / sigma - 1)))
    return worst


if __name__ == "__main__":
    main()
