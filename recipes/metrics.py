"""Metrics of samples on laws whose distance is known: the value, its interval, its floor, and what may be compared.

FD and W_2^2 of N(m, s^2) and N(0, 1) in d dimensions are |m|^2 + d (s - 1)^2; on a line exact and sliced W_2 are one.
"""

import math

import torch

import sfumato as sf
from sfumato.metrics import FD, SlicedWasserstein, compare, evaluate


def main() -> float:
    """The error of two distances, relative to their closed form."""
    noise = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = torch.tensor([1.0, 0.5]) + 1.5 * noise[0], noise[1]
    closed = 1.25 + 2 * 0.5**2
    fd, line = FD()(x, y), SlicedWasserstein()(x[:, :1], y[:, :1])
    print(f"FD {fd.value:.3f} ({fd.low:.3f} to {fd.high:.3f}), closed form {closed}")
    print(f"W_2 of the first coordinate {line.value:.3f}, closed form {math.sqrt(1.25):.3f}")

    law = sf.exact.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.3, 0.3])
    model = law.denoiser(sf.Gaussian(sf.schedules.Cosine()))
    few, many = (evaluate(model, law.sample(1000), "energy", 400, steps=steps)["energy"] for steps in (2, 16))
    print(f"energy distance after 2 steps {few}, after 16 {many}")
    try:
        print(few < many)
    except sf.SfumatoError as error:
        print(error)
    gap = compare(few, many, varying=("steps", "calls", "sampler"))
    print(f"2 steps are worse by {gap.value:.3f} ({gap.low:.3f} to {gap.high:.3f})")
    assert gap.low > 0
    return max(abs(fd.value / closed - 1), abs(line.value / math.sqrt(1.25) - 1))


if __name__ == "__main__":
    main()
