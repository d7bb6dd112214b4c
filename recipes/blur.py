"""F3, blurring diffusion (2209.05557): high frequencies go first, and the likelihood of a field stays exact.

z_f = a(t) ((1 - floor) e^(-l_f tau) + floor) c_f + s(t) eps_f,   c = DCT of x
"""

import torch

import sfumato as sf
from sfumato.process import Blur


def main() -> float:
    """The largest error of log p, in nats of 64 numbers, of fields whose spectrum falls as 1 / (l + 0.3)."""
    process = Blur("cosine", (1, 8, 8), width=3.0)
    power = 1 / (process.transform.eigenvalues + 0.3)
    law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 64), power.reshape(1, -1), shape=(1, 8, 8))
    process = Blur("cosine", (1, 8, 8), width=3.0, power=tuple(power.flatten().tolist()))
    model, c = law.denoiser(process), law.sample(4)
    found, true = sf.log_prob(model, process.table(c), steps=64).value, law.log_prob(c)
    print(f"log p of four fields: {found.tolist()}, exactly {true.tolist()}")
    samples = process.data(sf.sample(model, 500, 20))
    ratio = samples.var(0).mean() / power.mean()
    print(f"samples in 20 steps have {100 * float(ratio):.1f} % of the power of the data")
    return float((found - true).abs().max())


if __name__ == "__main__":
    main()
