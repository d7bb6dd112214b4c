"""C11, EDM's stochastic sampler (2206.00364, Algorithm 2): noise is added and removed, and the law stays.

sigma^ = (1 + gamma) sigma,   z^ = z + sqrt(sigma^^2 - sigma^2) xi,   then a step of Heun from sigma^ down
"""

import sfumato as sf


def main() -> float:
    """The largest error of mean and standard deviation over the amounts of churn."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    model = truth.denoiser(sf.Gaussian(sf.schedules.VE(0.002, 80.0)))
    x, worst = truth.sample(20_000, seed=9), 0.0
    print(f"    data: mean {x.mean(0).tolist()}, std {x.std(0).tolist()}")
    for churn in (0.0, 10.0, 40.0):
        z = sf.sample(model, 4000, 64, sf.solvers.Churn(s_churn=churn), batch=4000)
        print(f"churn {churn:2.0f}: mean {z.mean(0).tolist()}, std {z.std(0).tolist()}")
        worst = max(worst, float((z.mean(0) - x.mean(0)).abs().max()), float((z.std(0) - x.std(0)).abs().max()))
    return worst


if __name__ == "__main__":
    main()
