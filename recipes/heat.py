"""F3, inverse heat dissipation (2206.13397): the noise is tiny, the picture dissolves, its mean stays.

z_f = e^(-l_f tau) c_f + sigma eps_f
delta_f^2 = sigma^2 + alpha_s^2 Var(c_f | z_t) for the step that renews all noise
"""

import torch

import sfumato as sf
from sfumato.process import Heat


def main() -> float:
    """The error of the mean of a blurred picture; and delta / sigma, for which the paper takes 1.25 throughout."""
    heat = Heat("cosine", (1, 16, 16), width=8.0)
    x = sf.exact.GaussianField((1, 16, 16), mean=0.3).sample(1)
    blurred = heat.table(heat.corrupt(heat.data(x), 1.0, torch.zeros_like(x)))
    power = 1 / (heat.transform.eigenvalues + 0.05)
    (alpha_t, sigma), (alpha_s, _) = heat.schedule(0.5), heat.schedule(0.49)
    left = power * sigma**2 / (alpha_t**2 * power + sigma**2)
    delta = torch.sqrt(1 + alpha_s**2 * left / sigma**2)
    print(f"delta / sigma runs from {float(delta.min()):.2f}, buried waves, to {float(delta.max()):.2f}, visible ones")
    return float((blurred.mean() - x.mean()).abs())


if __name__ == "__main__":
    main()
