"""C6, H3, H4: what holds for E[x|z] and no other function, as numbers that are 0 for an exact model.

E[(x - D).(D - m)] = 0;   E|x - D|^2 = (sigma^2 / alpha) E tr dD/dz;   D = E[x|z]
With D = m + 0.9 (E[x|z] - m) the slope is 1/0.9 - 1 at every level, and correcting it is worth what was lost
"""

import torch

import sfumato as sf

LAW = sf.exact.GaussianMixture([0.4, 0.6], [[-1.0, 0.4], [0.9, -0.2]], [0.15, 0.1])
PROCESS = sf.Gaussian(sf.schedules.Cosine())


class Shrunk:
    """The exact model, shrunk towards the mean of the data by a tenth."""

    def __init__(self) -> None:
        self.process, self.shape, self.exact = PROCESS, (2,), LAW.denoiser(PROCESS)

    def __call__(self, z: torch.Tensor, t: torch.Tensor) -> sf.Estimate:
        x = LAW.mean + 0.9 * (self.exact(z, t).x - LAW.mean)
        return sf.Estimate(z, t, PROCESS.schedule, x=x)


def main() -> float:
    """The largest distance of the slope from 1/9, in standard errors."""
    print(sf.audit(LAW.denoiser(PROCESS), LAW, bins=4, samples=1024))
    found = sf.audit(Shrunk(), LAW, bins=4, samples=1024)
    print("\nshrunk by a tenth:\n", found, sep="")
    print("\nafter the correction:", sf.audit(found.corrected(Shrunk(), "slope"), LAW, bins=4, seed=1).violated)
    return max(abs(one.value - 1 / 9) / one.stderr for one in found.findings["slope"].value)


if __name__ == "__main__":
    main()
