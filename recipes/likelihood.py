"""C7, the likelihood of a diffusion model (2011.13456, App. D.2), against the mixture's own log-density.

log p(x) = log N(z_1; 0, sigma_1^2) + int div(dz/dt) dt,   the trace exactly or by probes v^T J v
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest error of the exact trace, in nats a dimension."""
    stds = torch.tensor([[0.1, 0.4], [0.3, 0.1], [0.2, 0.2]], dtype=torch.float64)
    truth = sf.exact.GaussianMixture([0.3, 0.3, 0.4], [[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], stds**2)
    model, x = truth.denoiser(sf.Gaussian(sf.schedules.Cosine())), truth.sample(500)
    exact = sf.log_prob(model, x)
    print(exact)
    print(f"truth: {float(truth.log_prob(x).mean()):.6g}")
    error = float((exact.value - truth.log_prob(x)).abs().max()) / 2
    print(f"largest error: {error:.1e} nat a dimension")

    wide = sf.exact.GaussianField((1, 4, 4), power=2.0)
    model, x = wide.denoiser(sf.Gaussian(sf.schedules.Cosine())), wide.sample(500)
    for trace in ("gaussian", "rademacher", "deflated"):
        found = sf.log_prob(model, x, trace=trace, probes=8, steps=32)
        low, high = found.interval(0.95)
        covered = float(((low <= wide.log_prob(x)) & (wide.log_prob(x) <= high)).double().mean())
        print(f"{trace:>10}: standard error {float(found.stderr.mean()):.3f} nats, 95 % intervals cover {covered:.1%}")
    return error


if __name__ == "__main__":
    main()
