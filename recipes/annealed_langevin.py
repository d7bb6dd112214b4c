"""B4, NCSN (1907.05600, Algorithm 1): Langevin dynamics finds the weights of far modes only if the noise is annealed.

z <- z + a/2 score(z, sigma) + sqrt(a) xi,   a = step sigma^2,   sigma falling from level to level
"""

import math

import sfumato as sf
from sfumato import noise


def main() -> float:
    """How far the weight of the first mode is from 0.2 after annealing."""
    truth = sf.exact.GaussianMixture([0.2, 0.8], [[-1.0], [1.0]], 0.06)
    schedule, n = sf.schedules.VE(0.02, 20.0), 1500
    model = truth.denoiser(sf.Gaussian(schedule))
    annealed = sf.sample(model, n, 40, sf.solvers.AnnealedLangevin(updates=10), batch=n)
    weight = float((annealed < 0).double().mean())
    z, level = 3 * noise.normal(5, range(n), (1,)), float(schedule.time(-2 * math.log(0.05)))
    alone = sf.sample(model, steps=1, solver=sf.solvers.AnnealedLangevin(updates=300), z=z, t_start=level, batch=n)
    print(f"weight of the first mode: 0.200; 40 levels of 10 updates {weight:.3f} +- {0.4 / n**0.5:.3f}")
    print(f"300 updates at sigma = 0.05 alone keep that of the start: {float((alone < 0).double().mean()):.3f}")
    return abs(weight - 0.2)


if __name__ == "__main__":
    main()
