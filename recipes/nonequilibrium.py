"""A3, diffusion of 2015 (1503.03585): bits that flip, or Gaussian noise; log p(x) >= K = -(L_T + sum L_t + L_0).

On a table of 4 bits every expectation is a sum over all states, and E[log p - K] is what bit-wise reverse draws lose.
"""

import torch

import sfumato as sf


def main() -> float:
    """How far the mean of K over all states is from -entropy - gap, both computed, relative to the gap."""
    law = sf.exact.Table(torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(0)) ** 3)
    process = sf.Uniform(sf.schedules.Flow())  # keeps a bit with probability 1 - t: beta_i = 1 / (T - i + 1)
    model, worst = law.denoiser(process), 0.0
    x, z = law.states.repeat_interleave(16, 0), law.states.repeat(16, 1)
    for steps in (4, 16, 64):
        bound = -law.probs @ sf.nonequilibrium.terminal_kl(process, law.states)
        for i in range(1, steps + 1):
            s, t = (i - 1) / steps, i / steps
            terms = sf.nonequilibrium.step_kl(model, x, z, s, t).reshape(16, 16)
            bound -= law.probs @ (law.kernel(process, 0.0, t) * terms).sum(1)
        gap = sum(law.dependence(process, i / steps, (i + 1) / steps) for i in range(steps))
        worst = max(worst, abs(float(bound) + law.entropy + gap) / gap)
        drawn = float(sf.nonequilibrium.nonequilibrium_bound(model, law.sample(1000), steps).nats.mean())
        print(f"{steps} steps: K = {float(bound):.4f} nats ({drawn:.2f} by draws), E log p = {-law.entropy:.4f}")
    samples = sf.sample(model, 4000, steps=100, batch=4000)
    found = torch.bincount(law.place(samples), minlength=16).double() / 4000
    print(f"samples: total variation from the table {float((found - law.probs).abs().sum()) / 2:.3f}")
    # Gaussian kernels: the same sum; on N(0, I) the reverse chain is Gaussian, and the bound has no gap at all
    normal = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
    points = normal.sample(1000)
    bound = sf.vlb(normal.denoiser(sf.Gaussian(sf.schedules.Cosine())), points, 8, variance="beta").total.mean()
    print(
        f"Gaussian kernels, 8 steps: {float(bound):.2f} nats, -E log p = {-float(normal.log_prob(points).mean()):.2f}"
    )
    return worst


if __name__ == "__main__":
    main()
