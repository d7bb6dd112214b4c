"""C4, C14: solvers of the reverse SDE, and how fast mean and variance come right (weak order).

z_s = sigma_s/sigma_t e^{-tau^2 h} z_t + alpha_s int H e^{-H (1 - u)} x du + sigma_s sqrt(1 - e^{-2 tau^2 h}) xi
    = alpha_s/alpha_t z_t - (1 + tau^2) sigma_s int h e^{h (1 - u)} eps du + tau sigma_s sqrt(e^{2 h} - 1) xi
"""

import math

import torch

import sfumato as sf
from sfumato.solvers import DDPM, EulerMaruyama, OptimalDDPM, SASolver, SDEDPMSolver, grids


def error(solver: object, steps: int) -> float:
    """|mean - 0.7| + |variance - 0.3|, exactly: on a Gaussian a walk is affine in its draws, one a row."""
    truth = sf.exact.GaussianMixture([1.0], [[0.7]], 0.3)
    model = truth.denoiser(sf.Gaussian(sf.schedules.Flow()))
    plan = solver.plan(model.process.schedule, steps)  # type: ignore[attr-defined]
    z = torch.zeros(plan.calls + 2, 1, dtype=torch.float64)
    z[1] = 1.0  # the prior's draw

    def one(call: int, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like).index_fill_(0, torch.tensor(2 + call), 1.0)

    *_, last = (plan.walk if hasattr(plan, "walk") else plan.run)(model, z, one)
    return float((last.z[0] - 0.7).abs() + ((last.z[1:] - last.z[0]).square().sum() - 0.3).abs())


def main() -> float:
    """The error of the optimal variance in three steps, which is exact on a Gaussian."""
    grid = grids.FlowTime()
    for name, solver in (
        ("DDPM, posterior", DDPM(grid)),
        ("DDPM, beta", DDPM(grid, "beta")),
        ("Euler-Maruyama", EulerMaruyama(grid=grid)),
        ("SDE-DPM-Solver++(2M)", SDEDPMSolver(2, grid=grid)),
        ("SA-Solver 2, 2", SASolver(2, 2, grid=grid)),
        ("SDE-DPM-Solver(2M)", SDEDPMSolver(2, grid=grid, row="eps")),
        ("SA-Solver 2, 2 of eps", SASolver(2, 2, row="eps", grid=grid)),
    ):
        errors = [error(solver, steps) for steps in (20, 40, 80)]
        slope = math.log2(errors[1] / errors[2])
        print(f"{name:21s}: {', '.join(f'{e:.5f}' for e in errors)} in 20, 40, 80 steps; order {slope:.2f}")
    exact = error(OptimalDDPM(grid), 3)
    print(f"DDPM with the model's Var[x|z]: {exact:.1e} in 3 steps")
    return exact


if __name__ == "__main__":
    main()
