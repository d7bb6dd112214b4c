"""C5, the probability-flow ODE (2011.13456, Eq. 13), against the exact map: each solver at its own order.

dz/dt = alpha' x + sigma' eps;   for one Gaussian z_s = alpha_s m + (z_t - alpha_t m) sd_s / sd_t
"""

import math

import sfumato as sf


def main() -> float:
    """How far the measured order of Heun's method is from 2."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    process = sf.Gaussian(sf.schedules.LinearBeta())
    model, z = truth.denoiser(process), truth.sample(200, process=process, t=0.9)
    exact = truth.flow(z, 0.9, 0.1, process)
    solvers = {"Euler": sf.solvers.Euler(), "Heun": sf.solvers.Heun(), "multistep 3": sf.solvers.Multistep(order=3)}
    orders = {}
    for name, solver in solvers.items():
        errors = [
            float((sf.sample(model, steps=k, solver=solver, z=z, t_start=0.9, t_stop=0.1) - exact).norm(dim=1).mean())
            for k in (40, 80)
        ]
        orders[name] = math.log2(errors[0] / errors[1])
        print(f"{name:>12}: error {errors[0]:.2e} at 40 steps, {errors[1]:.2e} at 80: order {orders[name]:.2f}")
    return abs(orders["Heun"] - 2)


if __name__ == "__main__":
    main()
