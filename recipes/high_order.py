"""C14, high-order solvers (2206.00927, 2211.01095, 2302.04867): a row, a variable and an order of one integrator.

z_s = S_s (z_t / S_t + sum_i w_i y_i),   w_i = int l_i(v(c)) dc   over the step of the row's clock c
"""

import dataclasses
import math

import sfumato as sf

SOLVERS = {
    "DPM-Solver-3": sf.solvers.DPMSolver(3),
    "DPM-Solver++ (2M)": sf.solvers.DPMSolverPP(2),
    "DPM-Solver++ (3M)": sf.solvers.DPMSolverPP(3),
    "DEIS in t": sf.solvers.DEIS(3),
    "LMS": sf.solvers.LMS(3),
    "UniPC-2": sf.solvers.UniPC(2),
    "Adams in the flow row, corrected": sf.solvers.Multistep(3, corrector=True),
}


def main() -> float:
    """The largest distance of a measured order from the declared one, over VP, VE and the linear path."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    worst = 0.0
    for schedule in (sf.schedules.LinearBeta(), sf.schedules.VE(), sf.schedules.Flow()):
        process = sf.Gaussian(schedule)
        start, stop = (float(schedule.time(logsnr)) for logsnr in (0.0, 4.0))
        z = truth.sample(50, process=process, t=start)
        exact = truth.flow(z, start, stop, process)
        for name, solver in SOLVERS.items():
            even = dataclasses.replace(solver, grid=sf.solvers.grids.LogSNR())
            errors = []
            for steps in (40, 80):
                plan = even.plan(schedule, steps, start, stop)
                *_, last = plan.run(truth.denoiser(process), z)
                errors.append(float((last.z - exact).square().mean().sqrt()))
            order = math.log2(errors[0] / errors[1])
            print(
                f"{type(schedule).__name__:10s} {name:32s} {plan.calls} calls, error {errors[1]:.1e}: order {order:.2f}"
            )
            worst = max(worst, abs(order - plan.order))
    return worst


if __name__ == "__main__":
    main()
