"""B4, NCSN trained and sampled (1907.05600): ten levels, each weighted by its variance, then annealed Langevin.

sum_i sigma_i^2 DSM(sigma_i) = L E_i[1/2 |eps - eps_hat|^2]: the denoising loss with w(logsnr) = 1 at these levels
"""

import torch

import sfumato as sf


def main() -> float:
    """How far the weight of the first mode is from 0.2 in samples of the trained network."""
    torch.manual_seed(0)
    truth = sf.exact.GaussianMixture([0.2, 0.8], [[-1.0], [1.0]], 0.06)
    levels = sf.score_matching.Levels.geometric(0.05, 8.0, 10)
    process = sf.Gaussian(sf.schedules.VE(levels.sigmas[0], levels.sigmas[-1]))
    denoiser = sf.Denoiser(sf.nets.MLP(1, 48, 2), process, target="F")  # any target has a score
    optimizer, steps, batch = torch.optim.Adam(denoiser.parameters(), lr=8e-3), 500, 512
    x = truth.sample(steps * batch, seed=1).float()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - step / steps)
        index = torch.arange(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        sf.score_matching.ncsn(denoiser, x[index], levels, index=index).mean().backward()
        optimizer.step()
    for sigma in levels.sigmas[::3]:
        t = process.schedule.time(-2 * torch.tensor(sigma).log())
        z = truth.noised(1.0, sigma).sample(2000, seed=3)
        true = truth.noised(1.0, sigma).score(z)
        with torch.no_grad():
            off = (denoiser(z.float(), t).score - true).square().mean() / true.square().mean()
        print(f"sigma {sigma:6.3f}: error of the score {float(off.sqrt()):.3f} of its size")
    n = 2000
    out = sf.sample(denoiser.eval(), n, 10, sf.solvers.AnnealedLangevin(updates=60), batch=n)
    weight = float((out < 0).double().mean())
    print(f"weight of the first mode: 0.200; found {weight:.3f} +- {0.4 / n**0.5:.3f}")
    return abs(weight - 0.2)


if __name__ == "__main__":
    main()
