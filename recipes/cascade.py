"""I4, cascades with conditioning augmentation (2106.15282): what a bias of the first stage does to the second.

c = alpha y + s eta with alpha^2 + s^2 = 1; for a normal pair with C_xy, C_yy a bias b of y comes out as
alpha C_xy (alpha^2 C_yy + s^2)^-1 alpha b, which falls with s, while the law of x around it stays what it is.
"""

import math

import torch

import sfumato as sf
from sfumato.conditions import AUGMENTATION, LOW

PROCESS = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
VARIANCE, NOISE = 1.0, 0.3  # x = y + n: of y, and of n
BIAS = 0.8


class Small:
    """The exact denoiser of y ~ N(b, v), the first stage, which is off by b."""

    process, shape = PROCESS, (1,)

    def law(self, cond: dict) -> tuple[torch.Tensor | float, float]:
        return BIAS, VARIANCE

    def __call__(self, z: torch.Tensor, t: torch.Tensor, /, **cond: object) -> sf.Estimate:
        mean, variance = self.law(cond)
        alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return sf.Estimate(z, t, PROCESS.schedule, x=mean + gain * (z - alpha * mean))


class Large(Small):
    """The exact denoiser of p(x | c, s), which believes the first stage."""

    def law(self, cond: dict) -> tuple[torch.Tensor | float, float]:
        c, s = cond[LOW].values, float(cond[AUGMENTATION].values[0])
        alpha = math.sqrt(1 - s**2)
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + s**2)
        return gain * c, VARIANCE + NOISE - gain * alpha * VARIANCE


def main() -> float:
    """The largest distance of a measured bias from the formula, in deviations of x."""
    off = 0.0
    for s in (0.0, 0.3, 0.6, 0.9, 1.0):
        x = sf.sample(sf.Cascade(Small(), Large(), 1, level=s), 20_000, 16, "heun", batch=20_000).double()
        wanted = (1 - s**2) * VARIANCE / ((1 - s**2) * VARIANCE + s**2) * BIAS
        off = max(off, abs(float(x.mean()) - wanted) / math.sqrt(VARIANCE + NOISE))
        print(f"s = {s:.1f}: bias {float(x.mean()):+.3f}, by the formula {wanted:+.3f}; variance {float(x.var()):.3f}")
    return off


if __name__ == "__main__":
    main()
