"""A8, one belief in every language: x, eps, score, v and velocity are linear maps of each other (Efron 2011).

x = (z + sigma^2 score) / alpha,   eps = -sigma score,   v = alpha eps - sigma x,   velocity = alpha' x + sigma' eps
"""

import torch

import sfumato as sf

ROWS = ("x", "eps", "score", "v", "velocity", "F")


def main() -> float:
    """The largest difference after a way there and back, over all pairs."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    process, t = sf.Gaussian(sf.schedules.Cosine()), 0.4
    z = truth.sample(5, process=process, t=t)
    belief = truth.denoiser(process)(z, t)
    print("       z  " + "  ".join(f"{name:>8}" for name in ROWS))
    for i in range(3):
        print(f"{z[i, 0]:8.4f}  " + "  ".join(f"{getattr(belief, name)[i, 0]:8.4f}" for name in ROWS))
    worst = 0.0
    for told in ROWS:
        read = sf.Estimate(
            z, t, process.schedule, getattr(belief, told), named=told
        )  # as if a network had predicted it
        for name in ROWS:
            worst = max(worst, float((getattr(read, name) - getattr(belief, name)).abs().max()))
    autograd = torch.func.grad(lambda z: truth.log_prob(z, process=process, t=t).sum())(z)
    print(f"all {len(ROWS) ** 2} ways there and back: {worst:.1e}")
    print(f"score against the gradient of log p: {float((belief.score - autograd).abs().max()):.1e}")
    return worst


if __name__ == "__main__":
    main()
