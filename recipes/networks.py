"""J1, J2: a U-Net and a DiT for fields of any size; zero at first, so that the denoiser starts as c_skip z.

D = c_skip z + c_out net(c_in z),   c_skip = s_d^2 alpha / (sigma^2 + alpha^2 s_d^2);   h <- h + g Attn(..), g = 0
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest difference from c_skip z before any training."""
    worst = 0.0
    process = sf.Gaussian(sf.schedules.Cosine())
    nets = [sf.nets.build(shape, classes=3) for shape in ((2,), (3, 97), (1, 28, 28), (12, 33, 50), (1, 9, 8, 7))]
    nets.append(sf.nets.DiT((3, 33, 50), patch=4, width=64, depth=2, heads=2, classes=3))
    for net in nets:
        z = torch.randn(2, *net.shape, generator=torch.Generator().manual_seed(0))
        belief = sf.Denoiser(net, process, target="F")(z, 0.4, label=torch.tensor([0, -1]))
        alpha, sigma = process.schedule(0.4)
        gap = float((belief.x.detach() - alpha / (sigma**2 + alpha**2) * z).abs().max())
        count = sum(p.numel() for p in net.parameters())
        print(f"{type(net).__name__:>5} for {net.shape!s:>14}: {count:>9,} parameters, |x - c_skip z| = {gap:.0e}")
        worst = max(worst, gap)
    return worst


if __name__ == "__main__":
    main()
