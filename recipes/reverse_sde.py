"""C4, the reverse-time SDE (Anderson 1982): with the exact score, every eta has the same marginals.

dz = [f z - (1 + eta^2)/2 g^2 score] dt + eta g dw
"""

import sfumato as sf


def main() -> float:
    """The largest error of mean and standard deviation over eta in [0, 1]."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    model = truth.denoiser(sf.Gaussian(sf.schedules.Cosine()))
    x = truth.sample(20_000, seed=9)
    print(f"  data: mean {x.mean(0).tolist()}, std {x.std(0).tolist()}")
    worst = 0.0
    for eta in (0.0, 0.5, 1.0):
        z = sf.sample(model, 4000, 200, sf.solvers.DDIM(eta=eta), batch=4000)
        print(f"eta {eta:.1f}: mean {z.mean(0).tolist()}, std {z.std(0).tolist()}")
        worst = max(worst, float((z.mean(0) - x.mean(0)).abs().max()), float((z.std(0) - x.std(0)).abs().max()))
    return worst


if __name__ == "__main__":
    main()
