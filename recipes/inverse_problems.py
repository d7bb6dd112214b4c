"""I3, inverse problems: samples of p(x | y) for y = A x + s n of a mixture, beside the posterior in closed form.

A C A^T + s^2 is the covariance of y in each mode: its evidence gives the weight of the mode, and y moves its mean.
"""

import torch

import sfumato as sf


def main() -> float:
    """The error of log p(y), of the weights of the modes and of the mean, whichever is largest."""
    covs = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.1], [-0.1, 0.2]]], dtype=torch.float64)
    truth = sf.exact.GaussianMixture([0.6, 0.4], [[1.5, 0.0], [-1.0, 0.5]], covs)
    A, y, s = torch.tensor([[0.6, 1.0]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64), 0.2
    S = (A @ covs @ A.T + s**2)[:, 0, 0]
    r = (y - truth.means @ A.T)[:, 0]
    log_weights = truth.log_weights - 0.5 * (r**2 / S + torch.log(2 * torch.pi * S))
    gain = (covs @ A.T)[..., 0] / S[:, None]
    means = truth.means + gain * r[:, None]
    law = sf.exact.GaussianMixture(log_weights.exp(), means, covs - S[:, None, None] * gain[:, :, None] * gain[:, None])
    model = truth.denoiser(sf.Gaussian(sf.schedules.Cosine()))
    found = sf.posterior(model, y, sf.operators.Linear(A), s, n=2000, particles=4096, batch=4096)
    shares = law.responsibilities(found.samples.double()).mean(0)
    errors = [
        abs(found.log_evidence - float(log_weights.logsumexp(0))),
        float((shares - law.weights).abs().max()),
        float((found.mean - law.mean).abs().max()),
    ]
    print(f"log p(y) {found.log_evidence:.3f} +- {found.error:.3f}, exact {float(log_weights.logsumexp(0)):.3f}")
    print(f"weights of the modes {shares.tolist()}, exact {law.weights.tolist()}")
    print(f"mean {found.mean.tolist()}, exact {law.mean.tolist()}; {found.effective:.0f} of 4,096 particles count")
    return max(errors)


if __name__ == "__main__":
    main()
