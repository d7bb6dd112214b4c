"""C9, latents by the ODE (2010.02502, Sec. 5.3): encode, edit, decode.

z_1 = Phi_{0 -> 1}(x),   x = Phi_{1 -> 0}(z_1);   z_1 / sigma_1 ~ N(0, 1)
"""

import math

import torch

import sfumato as sf


def main() -> float:
    """How far an edited sample is from the closed form of the edit."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    model = truth.denoiser(sf.Gaussian(sf.schedules.Cosine()))
    x = truth.sample(500)
    latent = sf.encode(model, x)
    print(f"latents: mean {latent.mean(0).tolist()}, standard deviation {latent.std(0).tolist()}")
    for steps in (16, 32, 64):
        back = sf.decode(model, sf.encode(model, x, steps), steps)
        print(f"there and back in {steps:2d} steps: {float((back - x).norm(dim=1).mean()):.1e} away")
    way = sf.interpolate(model, x[:1], x[1:2], torch.linspace(0, 1, 5).tolist())
    print("from one sample to another:", [[round(v, 2) for v in point[0].tolist()] for point in way])
    # another class from the same latent: of Gaussians, m_1 + (x - m_0) sd_1 / sd_0
    first = truth.sample(100, label=0)
    edited = sf.decode(model, sf.encode(model, first, label=0), label=1)
    expected = truth.means[1] + (first - truth.means[0]) * math.sqrt(0.1 / 0.2)
    error = float((edited - expected).norm(dim=1).mean())
    print(f"class 0 edited to class 1: {error:.1e} away from the closed form")
    return error


if __name__ == "__main__":
    main()
