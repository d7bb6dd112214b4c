"""C8, bits per dimension of whole numbers (1511.01844): uniform dequantisation makes log p(x + u) a bound.

-log2 P(x) <= -E_u log2 p(x + u),   u ~ U(-1/2, 1/2);   256 equally likely values give 8
"""

import math

import torch

import sfumato as sf


class Digitised:
    """The exact model of rounded Gaussian numbers, with the data spec that a trained model carries."""

    def __init__(self, x: torch.Tensor) -> None:
        self.spec = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(len(x)))
        law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 2), 1.0)  # normalised data has mean 0 and variance 1
        self.inner = law.denoiser(sf.Gaussian(sf.schedules.Cosine()))
        self.process, self.shape = self.inner.process, self.inner.shape

    def __call__(self, z: torch.Tensor, t: float, **cond: torch.Tensor) -> sf.Estimate:
        return self.inner(z, t, **cond)


def main() -> float:
    """How far the measured bits are from their closed form."""
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (100 + torch.tensor([3.0, 20.0]) * noise).round().to(torch.uint8)
    model = Digitised(x)
    found = sf.log_prob(model, x, steps=32)
    std = torch.tensor(model.spec.normaliser.std, dtype=torch.float64)
    # E over x and u of -log2 N(x + u; m, s^2) with the variance s^2 of x, to which u adds 1/12
    expected = float((0.5 * (1 + 1 / (12 * std**2)) + torch.log(std * math.sqrt(2 * math.pi))).mean()) / math.log(2)
    bits = float(found.bits_per_dim.mean())
    print(f"{bits:.4f} bits/dim ({found.dequantisation} dequantisation), closed form {expected:.4f}")
    return abs(bits - expected)


if __name__ == "__main__":
    main()
