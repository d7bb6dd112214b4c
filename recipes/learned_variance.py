"""A5, learned variances (2102.09672): the hybrid loss finds a step variance better than both fixed ones.

Sigma = exp(v log beta + (1 - v) log beta_tilde),   L = L_simple + 0.001 L_vlb,   -log p(x) <= L_T + sum L_k + L_0
"""

import torch

import sfumato as sf

truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.05, 0.1])
process = sf.Gaussian(sf.schedules.Cosine())


def main(rounds: int = 400, levels: int = 20) -> float:
    """The gap of the bound with the learned variance over that with the better of the fixed ones."""
    torch.manual_seed(0)
    net = sf.nets.MLP(2, width=64, depth=2, outputs=2)
    denoiser = sf.Denoiser(net, process, variance="learned")
    optimizer = torch.optim.Adam(net.parameters())
    for k in range(rounds):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - k / rounds)
        x = truth.sample(256, first=256 * k).float()
        optimizer.zero_grad()
        sf.hybrid_loss(denoiser, x, index=range(256 * k, 256 * (k + 1)), steps=levels).mean().backward()
        optimizer.step()
    x = truth.sample(2000, seed=1)
    entropy, gaps = -float(truth.log_prob(x).mean()), {}
    for variance in ("posterior", "beta", "learned"):
        found = sf.vlb(denoiser, x, levels, variance=variance)
        gaps[variance] = float(found.total.mean()) - entropy
        print(f"{variance:>9}: bound {found.total.mean():.4f} nats, {gaps[variance]:.4f} above -log p(x)")
    drawn = sf.sample(denoiser, 4000, levels, sf.solvers.LearnedDDPM(), batch=4000)
    print(f"ancestral samples: variance {[round(v, 3) for v in drawn.var(0).tolist()]}, data {x.var(0).tolist()}")
    return gaps["learned"] / min(gaps["posterior"], gaps["beta"])


if __name__ == "__main__":
    main()
