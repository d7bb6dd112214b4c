"""K1, the board (2303.00848, Eq. 6): what each noise level adds to an objective, and the floor of all models.

objective = int w(logsnr) E|eps - eps_hat|^2 / d dlogsnr;   floor = (alpha / sigma)^2 E tr Cov(x|z) / d
With w = 1 the floor's area is 2/d times what is known of x at the clean end: of variances c along its axes the mean of
log((1 + c snr) / (1 + c snr'))
"""

import math

import torch

import sfumato as sf


def main() -> float:
    """The area under the floor of a Gaussian of correlation 0.9 against its closed form, relative."""
    process = sf.Gaussian(sf.schedules.Flow())
    law = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]))
    torch.manual_seed(0)
    net = sf.nets.MLP(2, width=64, depth=2)
    model = sf.Denoiser(net, process, target="v")
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(200):
        index = range(128 * step, 128 * step + 128)
        x = law.sample(128, seed=1, first=index.start).float()
        loss = sf.denoising_loss(model, x, weight=sf.weights.sigmoid(), seed=1, index=index)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    print(sf.board(model, law, samples=128, times="uniform", weight="sigmoid"))
    exact = sf.board(law.denoiser(process), law, samples=200, times="uniform-logsnr", weight="elbo")
    area = exact.total("floor")[0]
    expected = sum(math.log1p(c * math.exp(15)) - math.log1p(c * math.exp(-15)) for c in (1.9, 0.1)) / 2
    print(f"\narea under the floor with w = 1: {area:.6f}, in closed form {expected:.6f}")
    return abs(area / expected - 1)


if __name__ == "__main__":
    main()
