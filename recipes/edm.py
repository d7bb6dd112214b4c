"""C11, EDM (2206.00364): its schedule, nodes and second-order solver; on matched Gaussian data F* = 0.

D = c_skip z + c_out F(c_in z, ln(sigma) / 4),   sigma_i^(1/rho) in equal steps
"""

import sfumato as sf


def main() -> float:
    """The error of 18 steps (35 calls) against the exact map, relative to the data's spread."""
    schedule = sf.schedules.EDM()
    process, sigma_data = sf.Gaussian(schedule), 0.5
    matched = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], sigma_data**2)
    z = matched.sample(100, process=process, t=0.5)
    belief = matched.denoiser(process)(z, 0.5)
    alpha, sigma = schedule(0.5)
    F = (belief.x - sigma_data**2 / (sigma**2 + sigma_data**2) * z) / (sigma * sigma_data)
    print(f"matched data: largest |F*| = {float(F.abs().max()):.1e}")
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-0.5, 0.0], [0.5, 0.25]], [0.05, 0.02])
    solver = sf.solvers.Heun(row="eps", grid=sf.solvers.grids.Rho(rho=7.0))
    plan = solver.plan(schedule, 18)
    start = truth.sample(200, process=process, t=1.0)
    error = sf.sample(truth.denoiser(process), solver=plan, z=start) - truth.flow(start, 1.0, 0.0, process)
    found = float(error.norm(dim=1).mean()) / float(truth.sample(1000).norm(dim=1).mean())
    print(f"{plan.steps} steps, {plan.calls} calls: relative error {found:.1e}")
    return found


if __name__ == "__main__":
    main()
