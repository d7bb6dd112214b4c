"""A1, the denoising autoencoder of one level (Vincent 2008, 2011): it estimates E[x | z], and with it a score.

1/2 |x - D(z)|^2;   Gaussian noise: grad log p = (D(z) - z) / sigma^2;   masking: the regression on what is left
"""

import torch

import sfumato as sf
from sfumato.denoising_autoencoder import GaussianNoise, Masking


def train(dae: sf.DenoisingAutoencoder, x: torch.Tensor, steps: int, batch: int = 128) -> None:
    """Plain Adam, every sample seen once."""
    optimizer = torch.optim.Adam(dae.parameters(), lr=5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        index = torch.arange(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        dae.losses(x[index], index=index).mean().backward()
        optimizer.step()


def main() -> float:
    """The distance of D from E[x | z], over the standard deviation of x given z."""
    torch.manual_seed(0)
    sigma = 0.4
    truth = sf.exact.GaussianMixture([0.35, 0.65], [[-1.0, 0.4], [0.9, -0.2]], [0.15, 0.08])
    z = truth.noised(1.0, sigma).sample(4000, seed=9)
    best, floor = truth.moments(z, alpha=1.0, sigma=sigma).x, truth.total_variance(z, alpha=1.0, sigma=sigma).mean()
    for code in (1, 32):
        dae = sf.DenoisingAutoencoder(sf.nets.Bottleneck((2,), code, (64,)), GaussianNoise(sigma))
        train(dae, truth.sample(500 * 128, seed=1).float(), 500)
        with torch.no_grad():
            found = float(((dae(z.float()) - best).square().sum(1).mean() / floor).sqrt())
        print(f"a code of {code:2d}: {found:.3f} from E[x | z], codes of shape {tuple(dae.encode(z.float()).shape)}")
    cov = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, -0.3], [0.2, -0.3, 0.5]], dtype=torch.float64)
    law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 3), cov[None])
    masked = sf.DenoisingAutoencoder(sf.nets.Bottleneck((3,), 32, (64,)), Masking(0.3))
    train(masked, law.sample(500 * 128, seed=2).float(), 500)
    given = torch.tensor([[1.0, 0.0, 0.0]])  # the first entry alone is left: E[x | x_1] = x_1 C[:, 1] / C[1, 1]
    told = [round(value, 3) for value in masked(given)[0].tolist()]
    print(f"masked to (1, 0, 0): {told}, by regression {(cov[:, 0] / cov[0, 0]).tolist()}")
    return found


if __name__ == "__main__":
    main()
