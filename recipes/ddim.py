"""C13, DDIM (2010.02502, Eq. 12): fewer steps of a trained model, and the same picture from the same noise.

z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std xi;   eta = 0 is Euler's method in sigma / alpha
"""

import math

import sfumato as sf


def main() -> float:
    """How far the measured order is from 1."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    process = sf.Gaussian(sf.schedules.FromBetas.ddpm())  # the table of a thousand steps, at any time between them
    z = truth.sample(200, process=process, t=1.0)
    exact = truth.flow(z, 1.0, 0.02, process)
    errors = {}
    for steps in (10, 50, 100, 200):
        got = sf.sample(truth.denoiser(process), steps=steps, solver=sf.solvers.DDIM(), z=z, t_stop=0.02)
        errors[steps] = float((got - exact).norm(dim=1).mean())
        print(f"{steps:4d} of 1000 steps: the samples are {errors[steps]:.4f} away from the ODE's")
    order = math.log2(errors[100] / errors[200])
    print(f"order {order:.2f}")
    return abs(order - 1)


if __name__ == "__main__":
    main()
