"""L1, log p(x) / p_ref(x) by the bounds of two models on common noise (2303.00848), beside the exact one.

1/2 int E[|eps - eps_ref|^2 - |eps - eps_hat|^2] dlogsnr

p = N(0.5, 0.6), p_ref = N(0, 1), at five points; with the weight of flow matching it is another number.
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest error in nats."""
    model, reference = (
        sf.exact.GaussianMixture([1.0], [[m]], v).denoiser(sf.Gaussian("cosine")) for m, v in ((0.5, 0.6), (0.0, 1.0))
    )
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    exact = sf.log_prob(model, x).value - sf.log_prob(reference, x).value
    found = sf.log_ratio(model, reference, x, levels=64)
    flow = sf.log_ratio(model, reference, x, levels=64, weight="flow")
    for row in zip(x[:, 0], exact, found.value, found.stderr, flow.value, strict=True):
        print(
            "x {:5.2f}   exact {:7.4f}   by the bounds {:7.4f} +- {:.4f}   flow weight {:7.4f}".format(*map(float, row))
        )
    return float((found.value - exact).abs().max())


if __name__ == "__main__":
    main()
