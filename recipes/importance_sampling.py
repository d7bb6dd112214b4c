"""K4, the noise schedule in training is importance sampling (2303.00848, Sec. 3.2): any p > 0, the same gradient.

L = 1/2 E_p[w / p |eps - eps_hat|^2] = 1/2 int w E|eps - eps_hat|^2 dlogsnr,   and the variance is what p decides
"""

import torch

import sfumato as sf

BATCH, COUNT = 64, 100


def main() -> float:
    """The largest difference between mean losses under four densities, in standard errors (about 2 by chance)."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    torch.manual_seed(0)
    denoiser = sf.Denoiser(sf.nets.MLP(2, 32, 2), sf.Gaussian(sf.schedules.Flow()), target="v")
    x, weight = truth.sample(BATCH * COUNT).float(), sf.weights.sd3_logit_normal()
    laws = {
        "uniform t": sf.times.uniform(),
        "uniform logsnr": sf.times.uniform_logsnr(),
        "logit-normal": sf.times.logit_normal(),
        "mode": sf.times.mode(),
        "logit-normal, spread": sf.times.low_discrepancy(sf.times.logit_normal()),
    }
    found = {}
    for name, law in laws.items():
        with torch.no_grad():
            losses = sf.denoising_loss(denoiser, x, weight=weight, times=law, seed=1).double()
        means = losses.reshape(COUNT, BATCH).mean(1)
        found[name] = float(means.mean()), float(means.std()) / COUNT**0.5
        print(f"{name:<21} loss {found[name][0]:.4f} +- {found[name][1]:.4f}; of one batch +- {float(means.std()):.4f}")
    pairs = [(a, b) for a in found.values() for b in found.values() if a is not b]
    return max(abs(a[0] - b[0]) / (a[1] ** 2 + b[1] ** 2) ** 0.5 for a, b in pairs)


if __name__ == "__main__":
    main()
