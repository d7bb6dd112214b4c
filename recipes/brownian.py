"""C4, the reverse SDE along one Brownian path a sample: with more steps a seed tends to one picture.

xi_k = (W(c_{k+1}) - W(c_k)) / sqrt(c_{k+1} - c_k),   c = sigmoid(logsnr / 8)
"""

import sfumato as sf


def main() -> float:
    """How far 40 steps are from 160 on the same paths."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    model = truth.denoiser(sf.Gaussian(sf.schedules.LinearBeta()))
    fresh, n, last = sf.solvers.SDEDPMSolver(2), 200, 0.0
    for name, solver in (("fresh noise", fresh), ("one path", sf.solvers.Brownian(fresh))):
        drawn = {steps: sf.sample(model, n, steps, solver, batch=n) for steps in (10, 40, 160)}
        for few, many in ((10, 40), (40, 160)):
            last = float((drawn[few] - drawn[many]).norm(dim=1).mean())
            print(f"{name}: {few:3d} steps are {last:.4f} from {many} steps")
    return last


if __name__ == "__main__":
    main()
