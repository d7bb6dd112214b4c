"""I6, latent diffusion (2112.10752): with a linear autoencoder and an exact denoiser of its codes, samples have the
covariance of the data in k principal components, and the bound on log p(x) falls short of it by what the rest is worth.
"""

import torch

import sfumato as sf
from sfumato.exact import GaussianMixture


def main() -> float:
    """How far the covariance of samples is from that of rank 2, in parts of its largest entry."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cov = root @ torch.diag(torch.tensor([4.0, 2.0, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)) @ root.T
    x = GaussianMixture([1.0], torch.zeros(1, 6), cov[None]).sample(2000).float()
    spec = sf.data.DataSpec.fit(sf.data.open(x))
    scale = torch.tensor(spec.normaliser.std, dtype=torch.float64)
    normal = cov / scale[:, None] / scale  # of the data as the autoencoder sees them
    axes = torch.linalg.eigh(normal).eigenvectors[:, -2:]
    net = sf.nets.Autoencoder((6,), latent=2, channels=(), variance=0.1)
    with torch.no_grad():  # E[y|x] = U^T x with next to no variance, E[x|y] = U y
        net.encoder.output.weight.copy_(torch.cat([axes.T, torch.zeros(2, 6)]))
        net.encoder.output.bias.copy_(torch.tensor([0.0, 0.0, -20.0, -20.0]))
        net.decoder.output.weight.copy_(axes)
        net.decoder.output.bias.zero_()
    codes = GaussianMixture([1.0], torch.zeros(1, 2), (axes.T @ normal @ axes)[None])
    process = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
    model = sf.Latent(codes.denoiser(process), sf.Codec(net, spec))
    made = sf.sample(model, 20_000, 20, "heun", batch=20_000).double().T.cov()
    wanted = scale[:, None] * (axes @ axes.T @ normal @ axes @ axes.T) * scale
    off = float((made - wanted).abs().max() / wanted.max())
    rest = float((made - cov).abs().max() / cov.max())
    print(f"covariance of samples: {off:.1%} from that of rank 2, {rest:.0%} from that of the data")
    print(sf.rate_split(model, x[:256], steps=64))
    return off


if __name__ == "__main__":
    main()
