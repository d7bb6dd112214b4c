"""A2, the variational autoencoder (1312.6114) and its EM reading, on probabilistic PCA, of which all is known.

log p(x) = ELBO + KL(q(y|x) || p(y|x)): the E step closes the gap, the M step raises what is left.
"""

import torch

import sfumato as sf
from sfumato.objectives.losses import Autoencoding
from sfumato.training import TrainConfig, fit


def main() -> float:
    """How far the ELBO of a linear VAE with the exact posterior is from log N(x; m, W W^T + s^2 I), in nats."""
    loading = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = sf.exact.PPCA(loading, 1.0, 0.3).sample(512)
    best = sf.exact.PPCA.fit(x, 2)  # maximum likelihood in closed form
    net = sf.nets.Autoencoder((6,), latent=2, channels=()).double()
    mean, cov = best.posterior(torch.zeros(1, 6, dtype=torch.float64))  # diagonal: the columns of W are orthogonal
    slope = torch.linalg.solve(best.precision, best.loading.T)
    with torch.no_grad():
        net.log_variance.fill_(best.variance).log_()
        net.encoder.output.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
        net.encoder.output.bias.copy_(torch.cat([mean[0], cov.diagonal().log()]))
        net.decoder.output.weight.copy_(best.loading)
        net.decoder.output.bias.copy_(best.mean)
    with torch.no_grad():  # every draw has the weight p(x)
        error = float((sf.vae.importance_bound(net, x, 1) - best.log_prob(x)).abs().max())
    top = float(best.log_prob(x).mean())
    model = sf.exact.PPCA(torch.eye(6, 2), 0.0, 1.0)
    for _ in range(50):
        model = model.em_step(x)
    print(f"maximum likelihood {top:.4f} nats; 50 steps of EM {float(model.log_prob(x).mean()):.4f}")
    codec = sf.Codec(sf.nets.Autoencoder((6,), latent=2, channels=()))
    config = TrainConfig(steps=300, batch=256, lr=5e-2, ema=0.0, precision="float32", weight_decay=0.0)
    *_, last = fit(codec, x.float(), config, loss=Autoencoding())
    print(f"a linear VAE after {last.step} steps of the loop: ELBO {-6 * (last.loss or 0.0):.2f} nats")
    print(f"with the exact posterior: |ELBO - log p(x)| = {error:.1e}")
    return error


if __name__ == "__main__":
    main()
