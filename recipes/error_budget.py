"""C5, what a sampler's error is made of, on a law that is known: prior, stop, steps and model.

x = sampler(xi) against x* = Phi(xi), the exact flow from pure noise; each source alone, and their sum
"""

import sfumato as sf


def main() -> float:
    """What does not add up, as a share of the whole error."""
    truth = sf.exact.GaussianMixture([1.0], [[0.5, -0.2]], [[[0.6, 0.3], [0.3, 0.5]]])
    wrong = sf.exact.GaussianMixture([1.0], [[0.52, -0.2]], [[[0.61, 0.3], [0.3, 0.5]]])
    model = wrong.denoiser(sf.Gaussian(sf.schedules.EDM(0.02, 12.0)))
    worst = 0.0
    for steps in (10, 20, 40):
        budget = sf.error_budget(model, truth, steps=steps, solver=sf.solvers.Heun())
        print(budget)
        worst = max(worst, abs(budget.interaction) / budget.total)
    return worst


if __name__ == "__main__":
    main()
